"""What people type: python -m pipeline COMMAND."""
