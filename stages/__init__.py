"""One short script per DVC stage: `python -m stages.NAME` runs it by hand, too."""
