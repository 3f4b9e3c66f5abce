"""The records in metrics/ of a folder, a git revision or a saved file."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import tarfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline.attribution.records import ATTRIBUTION, AttributionRecord
from pipeline.backends.base.artifact import COMPILED_METRICS, EVIDENCE, Artifact
from pipeline.compile.evidence import Evidence
from pipeline.compile.records import CompiledMetrics
from pipeline.core.errors import PipelineError
from pipeline.core.files import write_whole
from pipeline.core.records import METRICS, Record
from pipeline.latency.records import BENCHMARK, BenchmarkRecord, BenchmarkRow
from pipeline.robustness.records import ROBUSTNESS, RobustnessRecord

R = TypeVar("R", bound=Record)
Files = dict[str, bytes]
"""Contents by path from the project's root."""


@dataclass(frozen=True)
class Recorded:
    """What is recorded about one artifact; None for a file that is missing or broken."""

    metrics: CompiledMetrics | None
    evidence: Evidence | None
    row: BenchmarkRow | None


@dataclass(frozen=True)
class Snapshot:
    """What one side of a comparison has recorded."""

    name: str
    rows: dict[str, Recorded]
    """By `S/B/P`."""
    benchmark: BenchmarkRecord | None
    attribution: dict[str, AttributionRecord | None]
    """By student; None for a file that is broken."""
    broken: dict[str, str]
    """Why a file is no record of this version, by its path."""
    older: frozenset[str]
    """Those of the broken files that are JSON all the same: other versions wrote other fields."""
    robustness: dict[str, RobustnessRecord]
    """By student."""


def metrics_path(key: str, folder: Path = COMPILED_METRICS) -> str:
    """The file of the artifact `S/B/P` in a folder of metrics/."""
    return str(Artifact.parse(key).within(folder))


def take(name: str, files: Files, asked: Collection[str] = ()) -> Snapshot:
    """Read every record among `files`.

    The artifacts are those of the benchmark (which params.yaml asked for when it was recorded) and
    those in `asked` that have metrics; without a benchmark, all that have metrics. Other files may
    be left over from artifacts that params.yaml no longer asks for.
    """
    broken: dict[str, str] = {}
    metrics = _records(CompiledMetrics, COMPILED_METRICS, files, broken)
    evidence = _records(Evidence, EVIDENCE, files, broken)
    explained = {
        Path(file).stem: _parse(AttributionRecord, file, content, broken)
        for file, content in files.items()
        if _explains(file)
    }
    path, benchmark = str(BENCHMARK), None
    if path in files:
        benchmark = _parse(BenchmarkRecord, path, files[path], broken)
    robustness = {
        Path(path).stem: record
        for path, content in files.items()
        if _is_robustness(path)
        and (record := _parse(RobustnessRecord, path, content, broken)) is not None
    }
    latencies = benchmark.rows if benchmark else {}
    keys = [*latencies, *(key for key in asked if key in metrics)] if benchmark else [*metrics]
    return Snapshot(
        name=name,
        rows={
            key: Recorded(metrics.get(key), evidence.get(key), latencies.get(key))
            for key in dict.fromkeys(keys)
        },
        benchmark=benchmark,
        attribution=explained,
        broken=broken,
        older=frozenset(path for path in broken if _is_json(files[path])),
        robustness=robustness,
    )


def baseline_files(baseline: str) -> tuple[str, Files]:
    """The name of `baseline` in commands, and its files.

    Args:
        baseline: a folder, a saved file or a git revision.

    Raises:
        PipelineError: where it is none of them or has no metrics.
    """
    if not baseline:  # an unset variable of a script, not the current folder
        raise PipelineError("is empty", where="--baseline", fix="name a revision, folder or file")
    path = Path(baseline)
    if path.is_dir():
        name, files = baseline, folder_files(path)
    elif path.is_file():
        name, files = baseline, _saved_files(path)
    else:
        name, files = _revision_files(baseline)
    if not any(_key(file, COMPILED_METRICS) for file in files):
        what = f"the baseline has no records in {COMPILED_METRICS}"
        fix = "name a revision, folder or file that has some"
        raise PipelineError(what, where=baseline, fix=fix)
    return name, files


def folder_files(root: Path) -> Files:
    """The files of metrics/ in the folder `root`."""
    found = sorted(path for path in (root / METRICS).rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in found}


def save(files: Files, path: Path) -> None:
    """Write the records that a gate reads as one JSON file, which is a baseline."""
    kept = {
        name: content.decode(errors="replace")
        for name, content in files.items()
        if _key(name, COMPILED_METRICS)
        or _key(name, EVIDENCE)
        or name == str(BENCHMARK)
        or _explains(name)
        or _is_robustness(name)
    }
    write_whole(path, json.dumps(kept, indent=1) + "\n")


def _saved_files(path: Path) -> Files:
    try:
        contents = TypeAdapter(dict[str, str]).validate_json(path.read_bytes())
    except ValidationError:
        raise PipelineError(
            "not written by `python -m pipeline gate --save`", where=str(path)
        ) from None
    return {name: content.encode() for name, content in contents.items()}


def _revision_files(revision: str) -> tuple[str, Files]:
    """The short commit of a git revision, and its metrics/."""
    found = _git(
        "rev-parse", "--short=10", "--verify", "--end-of-options", f"{revision}^{{commit}}"
    )
    if found.returncode:
        raise _unreadable(revision, found.stderr.decode(errors="replace"))
    commit = found.stdout.decode().strip()
    archive = _git("archive", "--format=tar", commit, str(METRICS))
    if archive.returncode:  # the revision has no such folder
        return commit, {}
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        members = [member for member in tar if member.isfile()]
        contents = {member.name: tar.extractfile(member) for member in members}
        return commit, {name: file.read() for name, file in contents.items() if file}


def _unreadable(revision: str, said: str) -> PipelineError:
    """Why git has no such revision, by what it `said`."""
    where = f"--baseline {revision}"
    if "not a git repository" in said:
        return PipelineError(
            "this folder is no git repository",
            where=where,
            fix="name a folder with metrics/, or a file that `python -m pipeline gate --save FILE` "
            "wrote, as --baseline",
        )
    if "dubious ownership" in said:
        return PipelineError(
            "git does not read this repository, because it belongs to another user",
            where=where,
            fix=f"`git config --global --add safe.directory {shlex.quote(str(Path.cwd()))}`",
        )
    return PipelineError(
        "not a folder, a file or a git revision",
        where=where,
        fix="name what to compare with; where history is shallow, `git fetch --unshallow`",
    )


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        english = os.environ | {"LC_ALL": "C"}
        return subprocess.run(["git", *arguments], capture_output=True, env=english)
    except FileNotFoundError:
        raise PipelineError(
            "git is not installed", fix="install it, or name a folder as --baseline"
        ) from None


def _key(path: str, folder: Path) -> str | None:
    """`S/B/P` of the file B/S/P.json in a folder of metrics/; None for any other file."""
    file = Path(path)
    if file.suffix != ".json" or file.parent.parent.parent != folder:
        return None
    return f"{file.parent.name}/{file.parent.parent.name}/{file.stem}"


def _explains(path: str) -> bool:
    """Whether it is the file of an `AttributionRecord`."""
    return Path(path).parent == ATTRIBUTION and Path(path).suffix == ".json"


def _is_robustness(path: str) -> bool:
    file = Path(path)
    return file.suffix == ".json" and file.parent == ROBUSTNESS


def _records(
    kind: type[R], folder: Path, files: Files, broken: dict[str, str]
) -> dict[str, R | None]:
    """The records B/S/P.json of a folder by `S/B/P`; None for those that are broken."""
    return {
        key: _parse(kind, path, content, broken)
        for path, content in files.items()
        if (key := _key(path, folder))
    }


def _parse(kind: type[R], path: str, content: bytes, broken: dict[str, str]) -> R | None:
    try:
        return kind.parse(content, path)
    except PipelineError as error:
        broken[path] = error.what
        return None


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True
