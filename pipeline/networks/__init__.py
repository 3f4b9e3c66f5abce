"""Teachers and students by timm name, as networks from raw pixels to logits."""
