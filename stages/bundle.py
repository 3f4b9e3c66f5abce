"""Stage bundle: every compiled artifact as a folder that is shipped to a device."""

from pipeline.contracts import BUNDLES
from pipeline.deliver.bundle import write_bundles
from pipeline.errors import run
from pipeline.params import load_params


def main() -> None:
    bundles = write_bundles(load_params())
    print(f"written: {len(bundles)} bundle(s) in {BUNDLES}")


if __name__ == "__main__":
    run(main)
