"""edgestill: big image classifiers into small, quantized, verified models at the edge."""
