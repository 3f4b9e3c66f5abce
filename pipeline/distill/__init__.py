"""Training and distillation: losses, taps and adapters, the loop."""

import pipeline.networks  # noqa: F401  (makes timm importable)
