"""Compiles students for backends: the ladder and its rungs, evaluation and records."""
