"""Students that lose channels after distillation, to a share of MACs, latency or size."""
