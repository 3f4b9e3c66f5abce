"""torch to ONNX, preprocessing inside the graph, parity."""
