"""Stage prepare: packed splits, the manifest and the calibration set."""

from pipeline.core.errors import run
from pipeline.core.params import load
from pipeline.data.params import PrepareParams
from pipeline.data.prepare import prepare, summary


def main() -> None:
    params = load(PrepareParams)
    print("\n".join(summary(prepare(params.data, params.seed))))


if __name__ == "__main__":
    run(main)
