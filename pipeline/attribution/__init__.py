"""Where networks look: maps of the parts of an image that an answer depends on."""
