"""TensorRT on NVIDIA GPUs and Jetson."""
