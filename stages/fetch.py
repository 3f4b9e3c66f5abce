"""Stage fetch: the images as their source gives them."""

from pipeline.core.errors import run
from pipeline.core.params import load
from pipeline.data.params import FetchParams
from pipeline.data.sources import fetch


def main() -> None:
    fetch(load(FetchParams).data)


if __name__ == "__main__":
    run(main)
