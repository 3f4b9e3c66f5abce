"""What ships, and what runs on the device."""
