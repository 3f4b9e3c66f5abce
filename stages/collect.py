"""Stage collect: the metrics and evidence of every artifact, as git keeps them."""

from pipeline.compile.collect import CollectParams, collect
from pipeline.core.errors import run
from pipeline.core.params import load


def main() -> None:
    print(f"collected: the records of {collect(load(CollectParams))} artifact(s)")


if __name__ == "__main__":
    run(main)
