"""Accuracy of an artifact: top-1, agreement, calibration, flips and paired tests."""
