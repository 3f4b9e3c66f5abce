"""Kills `dvc repro` again and again, and compares what it ends with to an undisturbed run.

In a clone of the working tree, `dvc repro` first runs the profile `smoke` undisturbed. Then every
stage in turn is run anew (`dvc repro --force --single-item`, without DVC's run cache) and killed by
SIGKILL at a random moment of the time that it took. Half of the kills hit the whole process group,
as a power cut does; the others hit DVC's own process alone, whose stage has to end by itself.
Another `dvc repro` of the stage follows each kill. In the end `dvc repro` runs once more, and

- every output has the bits of the undisturbed run. Left out is what is measured: latencies,
  durations, and the pages and summaries that show them.
- DVC writes dvc.lock and .dvc/tmp/rwlock in place: where a kill leaves half of one, the file of
  before is put back, or deleted, as `python -m pipeline check` says, and counted.
- no scratch file is left, and `dvc status` names no stage but the one that always runs.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from benchmarks.shared import count
from pipeline.cli.check import check_lock
from pipeline.core.errors import PipelineError, run
from pipeline.core.files import sha256, write_whole
from pipeline.latency.fingerprint import read_fingerprint

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "kill.json"
OUTPUTS = ("data/raw", "data/packed", "data/calibration", "models", "metrics", "reports")
MEASURED = (
    "metrics/benchmark.json", "metrics/summary", "metrics/fingerprint.json", "models/benchmark",
    "reports",
)  # fmt: skip
"""Files and folders that differ between two runs of the same code."""
DURATIONS = "metrics.json", "metrics/compiled"
"""Records with the seconds of each attempt at int8."""
LINGERING = 60
"""Seconds that a stage may take to end once DVC is gone."""
_NAMED = 5

Victim = Literal["group", "dvc"]


@dataclass(frozen=True)
class Kill:
    """One kill: which stage ran, what was hit, when, and how long the stage lived on."""

    stage: str
    victim: Victim
    after: float
    """Seconds from the start of the stage."""
    outlived: float
    """Seconds until no process was left."""
    in_time: bool
    """Whether DVC was still running."""
    torn: bool
    """Whether DVC left one of its own lock files half-written."""


def clone(folder: Path, **changes: object) -> None:
    """The working tree as it lies on disk, without results, and with `changes` of its params."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listing, cwd=ROOT, text=True).splitlines():
        source = ROOT / name
        if source.is_file() and not name.startswith(("metrics/", "reports/", "dvc.lock")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, folder / name)
    for name in ("attribution", "devices", "robustness"):
        (folder / "metrics" / name).mkdir(parents=True)
    file = folder / "params.yaml"
    tree = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(tree | changes, sort_keys=False))
    identity = ["-c", "user.name=kill", "-c", "user.email=kill@example.org"]
    for command in (["init", "-q"], ["add", "-A"], [*identity, "commit", "-qm", "killed"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


class Repro:
    """A running `dvc repro` in a process group of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "repro", "--no-run-cache", *options],
            cwd=folder, env=os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.starts: dict[str, float] = {}
        """Time at which each stage began."""
        self.said: list[str] = []
        self.begun = threading.Event()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said.append(line)
            if line.startswith("Running stage '"):
                self.starts[line.split("'")[1]] = time.monotonic()
                self.begun.set()

    def finish(self) -> float:
        """Wait for its end; the time of it. `PipelineError` where it fails."""
        code = self._process.wait()
        ended = time.monotonic()
        self._reader.join()
        if code:
            raise PipelineError(f"`dvc repro` failed:\n{''.join(self.said[-30:])}")
        return ended

    def kill(self, victim: Victim) -> tuple[bool, float]:
        """Whether it still ran, and the seconds until no process of its group was left."""
        in_time = self._process.poll() is None
        started = time.monotonic()
        if victim == "group":
            _signal_group(self._process.pid)
        else:
            self._process.kill()
        self._process.wait()
        while _living(self._process.pid):
            if time.monotonic() - started > LINGERING:
                _signal_group(self._process.pid)
                raise PipelineError(f"its stage went on for {LINGERING} s after DVC was killed")
            time.sleep(0.02)
        self._reader.join()
        return in_time, time.monotonic() - started


def _signal_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.killpg(group, signal.SIGKILL)


def _living(group: int) -> bool:
    """Whether a process of the group runs; one that nobody has waited for does not."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = file.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            return True
    return False


def undisturbed(folder: Path, *options: str) -> dict[str, float]:
    """Run everything; the seconds that each stage took, in order."""
    running = Repro(folder, *options)
    ended = running.finish()
    times = [*running.starts.values(), ended]
    spans = (later - earlier for earlier, later in itertools.pairwise(times))
    return dict(zip(running.starts, spans, strict=True))


def plan(stages: dict[str, float], kills: int, seed: int) -> Iterator[tuple[str, Victim, float]]:
    """Stage, victim and seconds after the start of the stage for every kill, spread evenly."""
    rng = random.Random(seed)
    victims: tuple[Victim, Victim] = ("group", "dvc")
    turns = -(-kills // len(stages))
    order = [name for _ in range(turns) for name in rng.sample([*stages], len(stages))]
    for number, name in enumerate(order[:kills]):
        yield name, victims[number % 2], rng.uniform(0, stages[name])


def kill_once(folder: Path, stage: str, victim: Victim, after: float) -> Kill:
    """Run a stage anew, kill it, and run it again."""
    lock = folder / "dvc.lock"
    before = lock.read_bytes()
    running = Repro(folder, "--force", "--single-item", stage)
    if not running.begun.wait(LINGERING):
        running.kill("group")
        raise PipelineError(f"`dvc repro` did not start `{stage}` within {LINGERING} s")
    time.sleep(after)
    in_time, outlived = running.kill(victim)
    running_lock = folder / ".dvc" / "tmp" / "rwlock"
    torn = False
    for _ in range(2):
        try:
            check_lock(lock, running_lock)
        except PipelineError as error:
            torn = True
            if error.where == str(lock):
                lock.write_bytes(before)
            else:
                running_lock.unlink()
    Repro(folder, "--single-item", stage).finish()
    return Kill(stage, victim, after, outlived, in_time, torn)


def outputs(folder: Path) -> dict[str, str]:
    """SHA-256 of every output that is the same in each run, by path."""
    found = {}
    for root in OUTPUTS:
        for file in sorted((folder / root).rglob("*")):
            name = file.relative_to(folder).as_posix()
            if file.is_file() and not name.startswith(MEASURED):
                found[name] = _digest(file, name)
    return found


def _digest(file: Path, name: str) -> str:
    if not ((file.name == DURATIONS[0] and "compiled" in name) or name.startswith(DURATIONS[1])):
        return sha256(file)
    (fields,) = json.loads(file.read_bytes())
    for attempt in fields["ladder"]:
        del attempt["seconds"]
    del fields["sha256"]  # of all fields, seconds among them
    return hashlib.sha256(json.dumps(fields).encode()).hexdigest()


def judge(folder: Path, before: dict[str, str]) -> list[str]:
    """What is wrong after the last run, one sentence each."""
    after = outputs(folder)
    changed = sorted(n for n in before.keys() | after.keys() if before.get(n) != after.get(n))
    found = [f"differs from the undisturbed run: {name}" for name in changed]
    found += [f"left behind: {file}" for file in scratch(folder)]
    status = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json", "dvc.yaml"],
        cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    stale = json.loads(status.stdout).keys() - {"fingerprint"}
    return found + [f"`dvc status` names {name}" for name in sorted(stale)]


def scratch(folder: Path) -> list[str]:
    """Scratch files and folders in the project."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob(".*.partial"))


def measure(folder: Path, kills: int, seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Clone, run, kill, compare; the result as it is saved."""
    clone(folder, profile="smoke")
    started = time.monotonic()
    stages = undisturbed(folder)
    before = outputs(folder)
    tell(f"undisturbed: {len(stages)} stages in {time.monotonic() - started:.0f} s")
    done = []
    for number, chosen in enumerate(plan(stages, kills, seed), 1):
        one = kill_once(folder, *chosen)
        tell(
            f"{number}/{kills} {one.stage}: {one.victim} killed after {one.after:.1f} of "
            f"{stages[one.stage]:.1f} s{'' if one.in_time else ', when DVC had ended'}, "
            f"all gone {one.outlived:.1f} s later"
        )
        done.append(one)
    Repro(folder).finish()
    return {
        "machine": read_fingerprint().model_dump(mode="json", exclude={"runtimes"}),
        "seed": seed,
        "seconds": round(time.monotonic() - started),
        "outputs_compared": len(before),
        "torn_locks": sum(one.torn for one in done),
        "longest_outlived": round(max(one.outlived for one in done), 2),
        "stages": {name: _of_stage(name, seconds, done) for name, seconds in stages.items()},
        "faults": judge(folder, before),
    }


def _of_stage(name: str, seconds: float, kills: list[Kill]) -> dict[str, Any]:
    its = [one for one in kills if one.stage == name and one.in_time]
    return {"seconds": round(seconds, 1)} | Counter(
        {victim: sum(one.victim == victim for one in its) for victim in ("group", "dvc")}
    )


def show(result: dict[str, Any]) -> None:
    rows = result["stages"]
    print(
        f"\n{result['machine']['cpu']}, {result['machine']['cores']} cores; seed {result['seed']}"
    )
    print(f"{'stage':42}{'seconds':>9}{'group':>8}{'DVC alone':>11}")
    for name, row in rows.items():
        print(f"{name:42}{row['seconds']:>9.1f}{row['group']:>8}{row['dvc']:>11}")
    hit = sum(row["group"] + row["dvc"] for row in rows.values())
    print(
        f"{hit} kills of a running `dvc repro` in {result['seconds'] / 60:.0f} min; "
        f"{result['outputs_compared']} outputs compared; a stage outlived DVC by at most "
        f"{result['longest_outlived']} s"
    )
    if torn := result["torn_locks"]:
        print(f"DVC left a lock file of its own half-written {torn} times")
    faults = result["faults"]
    print("\n".join(faults[:_NAMED]) or "the same bits, nothing half-written, nothing stale")
    if len(faults) > _NAMED:
        print(f"and {len(faults) - _NAMED} more")


def main() -> int:
    options = argparse.ArgumentParser(description="random SIGKILLs of `dvc repro`")
    options.add_argument("--kills", type=count, default=100)
    options.add_argument("--seed", type=int, default=17)
    options.add_argument("--save", action="store_true", help=f"write {RESULTS}")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tell = lambda line: print(line, flush=True)  # noqa: E731
        result = measure(Path(folder), arguments.kills, arguments.seed, tell)
    show(result)
    if arguments.save:
        write_whole(RESULTS, json.dumps(result, indent=2) + "\n")
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    run(main)
