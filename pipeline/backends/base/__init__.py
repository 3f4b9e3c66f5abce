"""What all backends share; each backend is a folder beside this one."""
