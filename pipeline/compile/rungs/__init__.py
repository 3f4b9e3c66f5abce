"""The rungs of the ladder: one file and one entry point `edgestill.rungs` each."""
