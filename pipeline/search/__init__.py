"""Adjust and repeat until the target is met: a search over students and their recipes."""
