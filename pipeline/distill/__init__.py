"""Training and distillation: losses, taps and adapters, the loop."""
