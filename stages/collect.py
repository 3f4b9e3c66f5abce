"""Stage collect: the metrics and evidence of every artifact, as git keeps them."""

from pipeline.backends.base.params import ArtifactParams
from pipeline.compile.collect import collect
from pipeline.core.errors import run
from pipeline.core.params import load


def main() -> None:
    print(f"collected: the records of {collect(load(ArtifactParams))} artifact(s)")


if __name__ == "__main__":
    run(main)
