"""Images in: sources, packed splits, replayable views, the calibration set."""
