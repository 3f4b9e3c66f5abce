"""`python -m pipeline`: what people type. DVC runs stages/ instead."""

from pipeline.cli.commands import main
from pipeline.core.errors import run

if __name__ == "__main__":
    run(main)
