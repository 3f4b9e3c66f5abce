"""Whether accuracy, latency, size or execution became worse than in a baseline."""
