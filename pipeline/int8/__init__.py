"""int8 in torch: fake quantization, sensitivity, quantization-aware training."""
