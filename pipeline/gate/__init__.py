"""Did anything get worse than a baseline."""
