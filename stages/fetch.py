"""Stage fetch: the images as their source gives them."""

from pipeline.data.sources import fetch
from pipeline.errors import run
from pipeline.params import load_params


def main() -> None:
    fetch(load_params().data)


if __name__ == "__main__":
    run(main)
