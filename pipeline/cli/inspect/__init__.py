"""`python -m pipeline inspect`: what a model file of anybody has inside."""
