"""One module per runtime: compile, load, inspect. Heavy imports stay inside functions."""
