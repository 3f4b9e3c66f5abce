"""What a few hundred photos of two classes come to: fine-tuned, distilled, quantized, from scratch.

The real stages run in a clone of the working tree, one per seed. For the first seed that is all of
`dvc repro`, timed by stage; for the others everything up to the compiled artifacts. Val is the
folder's own; the seed decides what is cut from train for test, and the training. The rows:

- linear probe: a classifier fitted by L-BFGS on the frozen features of EfficientNet-Lite0 with its
  own normalisation; its penalty is chosen on val.
- student: the same weights, distilled from EfficientNet-Lite2, in float and as int8 by each
  runtime. The epoch is chosen on val, as in every run of the pipeline.
- from scratch: mobilenetv3_small_050 from random weights, on mixtures of small crops, 192 epochs,
  in float only. Distilled from that teacher, whose logits are recorded for 48 of them; and alone:
  with labels only, on the same views in as many epochs.

Every seed's figures are kept in the folder `--work`: a run that was stopped goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks.kill import clone, undisturbed
from benchmarks.shared import count
from pipeline.compile.records import CompiledMetrics
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import write_whole
from pipeline.data.recall import wilson
from pipeline.data.records import MANIFEST, Manifest, load_split
from pipeline.latency.fingerprint import read_fingerprint
from pipeline.networks.build import build_network, tool_versions
from pipeline.networks.inference import evaluate, set_up_torch
from pipeline.networks.params import Network
from pipeline.networks.pixels import PixelsToLogits
from pipeline.networks.pretrained import start_from
from pipeline.training.head import fit_classifier

RESULTS = Path(__file__).parent / "results" / "photos.json"
WORK = Path(".work/photos")
SEED = 17
"""The first one."""
NORMALISATION = {"mean": [127.0] * 3, "std": [128.0] * 3}
STUDENT = {
    "arch": "efficientnet_lite0", "weights": "lite0.pth", "normalisation": NORMALISATION,
}  # fmt: skip
TEACHER = {
    "arch": "efficientnet_lite2", "weights": "lite2.pth", "normalisation": NORMALISATION,
}  # fmt: skip
SCRATCH = {"arch": "mobilenetv3_small_050", "args": {"global_pool": "fastavg"}}
PATIENT = {
    "views": {"epochs": 192, "augment": {"flip": True, "crop": 0.25, "mixup": 1.0}},
    "teacher_logits": {"record": True, "epochs": 48, "top_k": None},
}
"""Groups of params.yaml for students from scratch (a patient teacher: arXiv 2106.05237)."""
TAUGHT = [{"name": "kl", "weight": 1.0, "options": {"temperature": 4.0}}]
ALONE = [{"name": "cross_entropy", "weight": 1.0}]
RUNTIMES = ("onnxruntime", "openvino", "tflite")

Scores = dict[str, float]
"""Top-1 on `val` and `test`, fractions."""


def configure(folder: Path, photos: Path, checkpoints: Path, seed: int, losses: Any = None) -> None:
    """Set the parameters of a clone: two of data, the weights, and what this benchmark compares.

    With `losses`, they are those of the students from scratch.
    """
    file = folder / "params.yaml"
    tree = yaml.safe_load(file.read_text())
    tree |= {"seed": seed, "checkpoints": str(checkpoints)}
    tree["data"] |= {"source": "folder", "folder": str(photos)}
    teacher = {"network": TEACHER, "views": {}}
    tree["teachers"] |= {"enabled": ["lite2"], "zoo": {"lite2": teacher}}
    zoo = {"lite0": STUDENT, "scratch": SCRATCH, "alone": SCRATCH}
    tree["students"] = {"enabled": ["lite0"], "zoo": zoo}
    if losses is not None:
        tree |= PATIENT
        tree["distill"] |= {"losses": losses, "int8_phase": 0}
    file.write_text(yaml.safe_dump(tree, sort_keys=False))


def probe(folder: Path, checkpoints: Path, seed: int) -> Scores:
    """The linear probe on the packed images of a clone."""
    packed = folder / "data/packed"
    manifest = Manifest.read(packed / MANIFEST)
    classes, channels = manifest.classes, manifest.channels
    network = Network.model_validate(STUDENT)
    set_up_torch(seed)
    size = manifest.image_size
    built = build_network(network, classes=len(classes), channels=channels, image_size=size)
    started = start_from(built, network, checkpoints, classes, channels)
    assert started is not None
    model = PixelsToLogits(built, started[0])
    train, val, test = (load_split(split, packed) for split in ("train", "val", "test"))
    top1 = fit_classifier(model, train, val, flip=True, name="linear probe")
    return {"val": top1, "test": evaluate(model, *test)[1]}


def trained(folder: Path, name: str) -> Scores:
    """The float figures of a network in a clone: `KIND/NAME`."""
    found = json.loads((folder / f"metrics/{name}.json").read_text())
    return {"val": found["val_top1"], "test": found["top1"]}


def compiled(folder: Path, runtime: str) -> Scores:
    """The figures of the student's int8 artifact, by its own runtime."""
    found = CompiledMetrics.read(folder / f"metrics/compiled/{runtime}/lite0/int8.json")
    (val,) = (one.val_top1 for one in found.ladder if one.kept)
    assert val is not None
    return {"val": val, "test": found.top1}


def stage(folder: Path, *command: str) -> None:
    """Run a stage in a clone by hand, also for a student that the graph does not have."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise PipelineError(f"`{' '.join(command)}` failed:\n{done.stdout.decode()[-2000:]}")


def measure(
    work: Path, photos: Path, checkpoints: Path, seed: int, *, whole: bool, scratch: bool
) -> None:
    """The rows for one seed, into `work`/seed-S.json; the clone is deleted then."""
    folder = work / f"seed-{seed}"
    if not (folder / ".dvc").is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        clone(folder)
    configure(folder, photos, checkpoints, seed)
    timed = folder / "seconds.json"  # outlives a run that is stopped after this point
    if not timed.exists():
        taken = undisturbed(folder, *(() if whole else ("collect",)))
        write_whole(timed, json.dumps(taken))
    seconds = json.loads(timed.read_text())
    rows = {
        "linear probe": probe(folder, checkpoints, seed),
        "teacher": trained(folder, "teachers/lite2"),
        "student, float": trained(folder, "students/lite0"),
        **{f"student, int8, {name}": compiled(folder, name) for name in RUNTIMES},
    }
    if scratch:
        for name, what, losses in (("scratch", "distilled", TAUGHT), ("alone", "alone", ALONE)):
            configure(folder, photos, checkpoints, seed, losses)
            if losses is TAUGHT:
                stage(folder, "stages.record_teacher")
            stage(folder, "stages.distill", "--student", name)
            rows[f"from scratch, {what}"] = trained(folder, f"students/{name}")
    manifest = Manifest.read(folder / "data/packed" / MANIFEST)
    images = {split: manifest.size(split) for split in ("train", "val", "test")}
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    result = {
        "seed": seed, "images": images, "threads": threads, "seconds": seconds, "rows": rows,
    }  # fmt: skip
    write_whole(work / f"seed-{seed}.json", json.dumps(result, indent=2) + "\n")
    shutil.rmtree(folder)


def summarise(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Of every row: the mean and sd over seeds, and Wilson's interval of the mean for the split.

    The intervals say how much another draw of as many images could change; seeds share the images,
    so that more seeds do not narrow them.
    """
    found: dict[str, Any] = {}
    for name in seeds[0]["rows"]:
        found[name] = {}
        for split in ("val", "test"):
            values = [one["rows"][name][split] for one in seeds if name in one["rows"]]
            mean, images = statistics.mean(values), seeds[0]["images"][split]
            found[name][split] = {
                "seeds": len(values),
                "mean": mean,
                "sd": statistics.stdev(values) if len(values) > 1 else None,
                "interval": list(wilson(mean * images, images)),
            }
    return found


def show(result: dict[str, Any]) -> None:
    machine = result["machine"]
    print(f"\n{machine['cpu']}, {machine['cores']} cores; {len(result['seeds'])} seed(s)")
    images = result["seeds"][0]["images"]
    print(", ".join(f"{number} {split}" for split, number in images.items()), "images\n")
    print(f"{'':32}{'val':>8}{'sd':>8}{'95%':>17}{'test':>9}{'sd':>8}{'95%':>17}")
    for name, row in result["rows"].items():
        cells = ""
        for one in row.values():
            sd = "" if one["sd"] is None else f"{one['sd']:.4f}"
            low, high = one["interval"]
            cells += f"{one['mean']:>8.4f}{sd:>8}{f'{low:.3f} to {high:.3f}':>17} "
        print(f"{name:32}{cells}")
    first = result["seeds"][0]
    seconds = first["seconds"]
    print(f"\n`dvc repro`, threads: {first['threads']}: {sum(seconds.values()) / 60:.1f} min")
    for stage, value in seconds.items():
        print(f"{stage:42}{value:>8.1f} s")


def main() -> int:
    options = argparse.ArgumentParser(description="few photos, with weights and from scratch")
    options.add_argument("--photos", type=Path, required=True, help="folder of images by class")
    options.add_argument("--checkpoints", type=Path, required=True,
                         help="folder with lite0.pth and lite2.pth")  # fmt: skip
    options.add_argument("--seeds", type=count, default=3)
    options.add_argument(
        "--no-scratch", action="store_true", help="leave out the student from scratch"
    )
    options.add_argument("--work", type=Path, default=WORK, help=f"{WORK} by default")
    options.add_argument("--save", action="store_true", help=f"write {RESULTS}")
    arguments = options.parse_args()
    photos, checkpoints = arguments.photos.resolve(), arguments.checkpoints.resolve()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    seeds = []
    for seed in range(SEED, SEED + arguments.seeds):
        file = work / f"seed-{seed}.json"
        if not file.exists():
            scratch = not arguments.no_scratch
            measure(work, photos, checkpoints, seed, whole=seed == SEED, scratch=scratch)
        seeds.append(json.loads(file.read_text()))
        print(f"seed {seed}: {json.dumps(seeds[-1]['rows'])}", flush=True)
    result = {
        "machine": read_fingerprint().model_dump(mode="json", exclude={"runtimes"}),
        "versions": tool_versions(),
        "rows": summarise(seeds),
        "seeds": seeds,
    }
    show(result)
    if arguments.save:
        write_whole(RESULTS, json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    run(main)
