"""Compiling a student for a backend: the ladder and its rungs, evaluation, records."""
