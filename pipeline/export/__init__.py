"""torch to ONNX, and the one place that opens ONNX Runtime."""
