"""One folder per runtime; `base` is what they share."""
