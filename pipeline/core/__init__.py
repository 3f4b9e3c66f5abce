"""What all rooms share: errors, whole files, progress, params and records."""
