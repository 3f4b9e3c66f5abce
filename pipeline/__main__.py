"""`python -m pipeline`: what people type. DVC runs stages/ instead."""

from pipeline.cli import main
from pipeline.errors import run

if __name__ == "__main__":
    run(main)
