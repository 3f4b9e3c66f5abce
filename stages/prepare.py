"""Stage prepare: packed splits, the manifest and the calibration set."""

from pipeline.core.errors import run
from pipeline.core.params import load
from pipeline.data.params import PrepareParams
from pipeline.data.prepare import prepare


def main() -> None:
    params = load(PrepareParams)
    manifest = prepare(params.data, params.seed)
    sizes = ", ".join(f"{manifest.size(split):,} {split}" for split in manifest.counts)
    print(f"{sizes} images of {manifest.image_size} px, {len(manifest.classes)} classes")
    for warning in manifest.warnings:
        print(f"warning: {warning}")


if __name__ == "__main__":
    run(main)
