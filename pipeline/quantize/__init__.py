"""The recovery ladder: what is tried when int8 loses too much."""
