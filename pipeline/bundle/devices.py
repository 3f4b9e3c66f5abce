"""Imports what bench.py, phone.py and verify.py of a bundle wrote about a device.

A result becomes metrics/devices/DEVICE/S-B-P-KIND.json. KIND names the script, the unit unless it
is the CPU, and for a latency the threads. Two machines with equal records are one device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.backends.base.artifact import BUNDLES
from pipeline.bundle.device_json import read_json
from pipeline.bundle.device_record import Comparison, Result, parse_result
from pipeline.bundle.device_values import one_line
from pipeline.bundle.records import Bundle
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256, write_whole
from pipeline.core.records import METRICS

DEVICES = METRICS / "devices"
_AGAIN = "let the bundle's script write it again, with --json FILE"
_FORGET = "remove it and import the device's own file again"


@dataclass(frozen=True)
class Imported:
    """A result and the file that holds it now."""

    result: Result
    file: Path
    state: Literal["written", "replaces an older one", "already there"]


def import_results(files: Sequence[Path]) -> list[Imported]:
    """Put results of bench.py, phone.py and verify.py into metrics/devices, in this order.

    A file of phone.py holds a result for each unit. All files are checked before any is written.

    Raises:
        PipelineError: for a file that is no such result, and for one about a bundle that is not
            in models/bundles, or there in another build.
    """
    digests = bundle_digests()
    results = [result for file in files for result in _read(file, digests)]
    return [_store(result) for result in results]


def stored_results(digests: dict[str, str]) -> list[Result]:
    """Every result in metrics/devices.

    Args:
        digests: of the bundles that are here, see `bundle_digests`.

    Raises:
        PipelineError: for a file that is no result, or contradicts the bundle that it is about.
    """
    results = []
    for file in sorted(DEVICES.glob("*/*.json")):
        result = parse_result(read_json(file, _FORGET), str(file), _FORGET)
        if file != _place(result):
            what = f"not the place of what it holds, which is {_place(result)}"
            raise PipelineError(what, where=str(file), fix=_FORGET)
        if digests.get(result.bundle.artifact.slug) == result.bundle.digest:
            _check_facts(result, file, _FORGET)
        results.append(result)
    return results


def bundle_digests() -> dict[str, str]:
    """The digest of each bundle in models/bundles, as its own scripts compute it, by its name."""
    return {file.parent.name: sha256(file) for file in sorted(BUNDLES.glob("*/SHA256SUMS"))}


def _read(file: Path, digests: dict[str, str]) -> list[Result]:
    """The results in a device's file, all of them about bundles in models/bundles."""
    content = _identified(read_json(file, _AGAIN), digests, file)
    results = [parse_result(one, str(file), _AGAIN) for one in _by_unit(content, file)]
    for result in results:
        _check_build(result, digests, file)
        _check_facts(result, file, _AGAIN)
    if len({result.file_name for result in results}) < len(results):
        what = "not what phone.py writes: two results are about the same unit"
        raise PipelineError(what, where=str(file), fix=_AGAIN)
    return results


def _by_unit(content: Any, file: Path) -> list[Any]:
    """The results in decoded JSON; phone.py writes their common fields once, beside `results`."""
    if not isinstance(content, dict) or "results" not in content:
        return [content]
    units = content["results"]
    if not (isinstance(units, list) and units and all(isinstance(unit, dict) for unit in units)):
        what = "not what phone.py writes: `results` is no list of them"
        raise PipelineError(what, where=str(file), fix=_AGAIN)
    common = {key: value for key, value in content.items() if key != "results"}
    if twice := {one_line(key, 100) for unit in units for key in unit.keys() & common.keys()}:
        what = f"not what phone.py writes: `{min(twice)}` stands in `results` and beside it"
        raise PipelineError(what, where=str(file), fix=_AGAIN)
    return [{**common, **unit} for unit in units]


def _check_build(result: Result, digests: dict[str, str], file: Path) -> None:
    name = result.bundle.artifact.slug
    if name not in digests:
        raise PipelineError(
            f"it is about the bundle {name}; here are {', '.join(digests) or 'none'}",
            where=str(file),
            fix="`dvc checkout` brings bundles back, `dvc repro bundle` makes those of params.yaml",
        )
    if digests[name] != result.bundle.digest:
        here = f"{BUNDLES / name}, which has {digests[name][:16]}"
        raise _another_build(result.bundle.digest, here, file)


def _check_facts(result: Result, file: Path, fix: str) -> None:
    """Compare what a verdict says of the bundle with the bundle, which is here in that build."""
    if not isinstance(result, Comparison):
        return
    bundle = Bundle.read(BUNDLES / result.bundle.artifact.slug / "bundle.json")
    for field, own, there in (
        ("tolerances", result.tolerances, bundle.tolerances),
        ("images", result.images, bundle.golden.images),
    ):
        if own != there:
            what = f"not what verify.py writes: `{field}` is not that of the bundle"
            raise PipelineError(what, where=str(file), fix=fix)


def _identified(content: Any, digests: dict[str, str], file: Path) -> Any:
    """`content`, completed where verify.py found damaged files and gave the digest alone."""
    if not isinstance(content, dict) or "verdict" not in content:
        return content
    if missing := [field for field in ("bundle", "machine") if field not in content]:
        why = one_line(str(content.get("why")), 300)
        raise PipelineError(
            f"it does not say which {missing[0]} it is about: {why}",
            where=str(file),
            fix="copy the bundle to the device again and run verify.py there",
        )
    bundle = content["bundle"]
    if not isinstance(bundle, dict) or bundle.keys() != {"digest"}:
        return content
    for name, digest in digests.items():
        if digest == bundle["digest"]:
            record = Bundle.read(BUNDLES / name / "bundle.json")
            names = record.model_dump(include={"student", "backend", "precision"})
            return {**content, "bundle": names | bundle}
    raise _another_build(str(bundle["digest"]), f"any in {BUNDLES}", file)


def _another_build(digest: str, here: str, file: Path) -> PipelineError:
    other = one_line(digest, 17)[:16]
    return PipelineError(
        f"it is about another build: a bundle with the digest {other}, not {here}",
        where=str(file),
        fix="copy the bundle that is here to the device and run its scripts again",
    )


def _place(result: Result) -> Path:
    return DEVICES / result.device_slug / result.file_name


def _store(result: Result) -> Imported:
    file = _place(result)
    text = result.model_dump_json(indent=2) + "\n"
    known = file.read_bytes() if file.exists() else None
    if known == text.encode():
        return Imported(result, file, "already there")
    write_whole(file, text)
    return Imported(result, file, "written" if known is None else "replaces an older one")
