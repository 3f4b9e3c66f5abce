"""What a person reads: the results table and the report."""
