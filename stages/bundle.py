"""Stage bundle: every compiled artifact as a folder that is shipped to a device."""

from pipeline.backends.base.artifact import BUNDLES
from pipeline.bundle.params import BundleParams
from pipeline.bundle.write import write_bundles
from pipeline.core.errors import run
from pipeline.core.params import load


def main() -> None:
    bundles = write_bundles(load(BundleParams))
    print(f"written: {len(bundles)} bundle(s) in {BUNDLES}")


if __name__ == "__main__":
    run(main)
