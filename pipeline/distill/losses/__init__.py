"""Distillation losses: pure functions that params.yaml names.

A new one is one function with `@loss` and one entry point: see docs/extending.md.
"""
