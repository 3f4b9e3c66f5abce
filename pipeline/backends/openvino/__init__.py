"""OpenVINO on Intel CPUs."""
