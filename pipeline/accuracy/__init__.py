"""Accuracy of an artifact: top-1, agreement, calibration, paired tests, answers per image."""
