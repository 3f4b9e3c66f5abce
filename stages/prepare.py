"""Stage prepare: packed splits, the manifest and the calibration set."""

from pipeline.data.prepare import prepare
from pipeline.errors import run
from pipeline.params import load_params


def main() -> None:
    params = load_params()
    manifest = prepare(params.data, params.seed)
    sizes = ", ".join(f"{manifest.size(split):,} {split}" for split in manifest.counts)
    print(f"{sizes} images of {manifest.image_size} px, {len(manifest.classes)} classes")
    for warning in manifest.warnings:
        print(f"warning: {warning}")


if __name__ == "__main__":
    run(main)
