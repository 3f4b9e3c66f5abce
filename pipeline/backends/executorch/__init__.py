"""ExecuTorch on phones, boards and CPUs, by its XNNPACK delegate."""
