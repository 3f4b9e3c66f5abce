"""Accuracy on corrupted and on adversarial test images, of what ships."""
