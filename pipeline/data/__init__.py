"""Images in: sources, packed splits, augmentation, the calibration set."""
