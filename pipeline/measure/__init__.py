"""Accuracy, latency and the machine they were measured on."""
