"""Opens an ONNX model by ONNX Runtime: in the lab and, as runtime.py, in bundles.

Needs NumPy and ONNX Runtime. In a bundle session.py lies beside this file.
"""

from __future__ import annotations

if __package__:
    from pipeline.export.session import load, versions
else:  # in a bundle
    from session import load, versions  # type: ignore[no-redef]

__all__ = ["load", "versions"]
