"""Distillation: losses, taps and adapters, recorded teacher logits, the objective."""
