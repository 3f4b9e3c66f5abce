"""Training of teachers and students: one loop, its recipe, devices, checkpoints and curves."""
