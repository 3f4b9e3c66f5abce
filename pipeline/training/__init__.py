"""The one training loop: recipe, devices, checkpoints, curves."""
