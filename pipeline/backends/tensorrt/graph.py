"""Runs TensorRT's portable graph by ONNX Runtime on the CPU: in the lab, and in bundles.

Each Q/DQ pair is computed as a rounding. ONNX Runtime's int8 kernels round otherwise than
TensorRT's, and need three times as long for signed activations on x86 without VNNI. Needs NumPy
and ONNX Runtime. In a bundle session.py lies beside this file.
"""

from __future__ import annotations

if __package__:
    from pipeline.export.session import Runner, versions
    from pipeline.export.session import load as load_onnx
else:  # in a bundle
    from session import Runner, versions  # type: ignore[no-redef]
    from session import load as load_onnx  # type: ignore[no-redef]

__all__ = ["load", "versions"]


def load(model: str, threads: int, batch: int = 0) -> Runner:
    """A function of raw pixels uint8 [N, H, W, C] to logits float32 [N, classes].

    Args:
        model: path of the ONNX file.
        threads: of the CPU.
        batch: images per call; a session takes any number.
    """
    return load_onnx(model, threads, batch, int8_kernels=False)
