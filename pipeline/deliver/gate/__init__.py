"""The regression gate: what was recorded, held against a baseline. No stage runs it."""
