"""Core ML on iPhones, iPads and Macs: ML programs as .mlpackage."""
