"""Teachers and students by timm name."""
