"""LiteRT (TensorFlow Lite) on phones, boards and CPUs."""
