"""The commands of `python -m pipeline`. Each imports what it needs when it is called."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; `PipelineError` for a mistake of the user."""
    parsed = _parser().parse_args(arguments)
    code: int = parsed.command(parsed) or 0
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description="Small, quantized, measured image classifiers. `dvc repro` makes them.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: object, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(command=command)
        return added

    add("doctor", _doctor, "list every runtime and what this machine can do with it")
    checked = add("check", _check, "find mistakes in params.yaml before anything is computed")
    checked.add_argument(
        "--export", action="store_true",
        help="also export every enabled student, untrained, and compile it for every backend",
    )  # fmt: skip
    add("look", _look, "write a page that shows the packed images, before they are trained on")
    add("results", _results, "show the measured results and the place of the report")
    home = add(
        "import-results", _import_results, "import results of a bundle's scripts on a device"
    )
    home.add_argument("files", nargs="+", type=Path, metavar="FILE", help="written with --json")
    taps = add("taps", _taps, "list the modules of a network that feature losses can tap")
    taps.add_argument("network", metavar="ARCH", help="a timm name, a student or a teacher")
    taps.add_argument("--size", type=_count, metavar="PIXELS", help="size of the images")
    taps.add_argument("--all", action="store_true", help="list every module, not only blocks")
    weights = add("weights", _weights, "list timm's weights of a network, and which are in reach")
    weights.add_argument("arch", metavar="ARCH", help="a timm name")
    gate = add("gate", _gate, "compare the records with a baseline; exits 1 on a regression")
    gate.epilog = (
        "Exit codes: 0 passed, 1 regression, 2 invalid, 3 inconclusive (0 with gate.inconclusive: "
        "pass). The groups `limits` and `gate` of params.yaml hold the thresholds."
    )
    gate.add_argument(
        "--baseline", default="HEAD", metavar="REV|FOLDER|FILE",
        help="a git revision (default: HEAD), a folder with metrics/, or a file of --save",
    )  # fmt: skip
    gate.add_argument("--only", metavar="S/B/P", help="show the findings of one artifact")
    gate.add_argument(
        "--rerun", action="store_true", help="time baseline and candidate artifacts side by side"
    )
    gate.add_argument(
        "--baseline-models", type=Path, metavar="FOLDER",
        help="the baseline's models/compiled for --rerun; by default fetched with `dvc get`",
    )  # fmt: skip
    gate.add_argument("--json", action="store_true", help="print the whole verdict as JSON")
    gate.add_argument(
        "--save", type=Path, metavar="FILE", help="write the records as a baseline and exit"
    )
    inspect = add("inspect", _inspect, "say what is inside a model file that anybody has made")
    inspect.epilog = "Files: .tflite, .onnx, .pte, .xml of OpenVINO. See docs/inspect.md."
    inspect.add_argument("file", type=Path, metavar="FILE", help="the model")
    inspect.add_argument(
        "--against", type=Path, metavar="FILE", help="the same network before it was quantized"
    )
    inspect.add_argument(
        "--inputs", type=Path, metavar="NPZ", help="arrays by input for --against; else seeded ones"
    )
    inspect.add_argument(
        "--shape", action="append", default=[], metavar="NAME=1x3x224x224",
        help="of an input whose size is not fixed",
    )  # fmt: skip
    inspect.add_argument("--json", action="store_true", help="print JSON instead of a text")
    search = add("search", _search, "search for the student that reaches the target of search.yaml")
    search.epilog = "Exit codes: 0 the target is met, 3 it is not. See docs/search.md."
    search.add_argument(
        "--worker", action="store_true", help="join a search that was begun; make no teachers"
    )
    asked = search.add_subparsers(metavar="status | adopt N")
    status = asked.add_parser("status", help="how the search stands")
    status.set_defaults(command=_search_status)
    adopt = asked.add_parser("adopt", help="write a candidate into params.yaml as a student")
    adopt.set_defaults(command=_search_adopt)
    adopt.add_argument("number", type=int, metavar="N", help="of a fully trained candidate")
    adopt.add_argument("--name", metavar="S", help="of the new student")
    adopt.add_argument("--yes", action="store_true", help="do not ask after showing the diff")
    predict = add("predict", _predict, "classify images with a compiled artifact")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE")
    predict.add_argument("--student", required=True, metavar="S")
    predict.add_argument("--backend", required=True, metavar="B")
    predict.add_argument("--precision", required=True, metavar="P")
    predict.add_argument("--top", type=_count, default=3, metavar="K", help="classes to show")
    predict.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _doctor(_: argparse.Namespace) -> None:
    from rich.console import Console

    from pipeline.cli.doctor import examine

    console = Console()
    for part in examine():
        console.print(part)


def _check(parsed: argparse.Namespace) -> int:
    import sys

    from pipeline.cli.check import check, check_lock, shape_of
    from pipeline.cli.params import load_params
    from pipeline.compile.untrained import rehearse
    from pipeline.core.errors import PipelineError
    from pipeline.data.unlabelled import list_unlabelled

    params = load_params()
    check_lock()
    check(params)
    print("params.yaml: no mistakes found", flush=True)
    if unlabelled := list_unlabelled(params.data.unlabelled):
        print(f"{params.data.unlabelled}: {len(unlabelled):,} images without labels", flush=True)
    if not parsed.export:
        return 0
    shape = shape_of(params)
    print(f"untrained students, images of {shape.image_size} px in {shape.channels} channel(s):")
    failures = 0
    for step in rehearse(params, params.export.opset, shape):
        failed = isinstance(step, PipelineError)
        failures += failed
        print(f"error: {step}" if failed else step, file=sys.stderr if failed else None, flush=True)
    if not failures:
        print("every enabled backend compiles every enabled student")
    return int(failures > 0)


def _look(_: argparse.Namespace) -> None:
    from pipeline.cli.look.page import PAGE, look
    from pipeline.cli.params import load_params

    print("\n".join(look(load_params())))
    print(f"The page: {PAGE.resolve().as_uri()}")


def _taps(parsed: argparse.Namespace) -> None:
    from rich.console import Console

    from pipeline.cli.taps import taps_table

    Console().print(taps_table(parsed.network, parsed.size, every=parsed.all))


def _weights(parsed: argparse.Namespace) -> None:
    from rich.console import Console

    from pipeline.cli.weights import weights_table

    Console().print(weights_table(parsed.arch))


def _results(_: argparse.Namespace) -> None:
    from rich.console import Console

    from pipeline.cli.params import load_params
    from pipeline.latency.records import BENCHMARK, BenchmarkRecord
    from pipeline.report.recommendation import unsure
    from pipeline.report.results import REPORTS, gather, table
    from pipeline.report.sections import undecided

    console = Console()
    if not console.is_terminal:
        console.width = 120  # logs wrap long lines themselves
    params = load_params()
    rows = gather(params)
    console.print(table(rows))
    benchmark = BenchmarkRecord.read(BENCHMARK) if BENCHMARK.exists() else None
    for reason in [*unsure(rows, params, benchmark), *undecided(rows)]:
        print(f"Not decided: {reason}.")
    report = REPORTS / "report.html"
    if report.exists():
        print(f"The report: {report.resolve().as_uri()}")
    else:
        print("There is no report yet: run `dvc repro`")


def _gate(parsed: argparse.Namespace) -> int:
    from pipeline.gate.command import Request, gate, save_records

    if parsed.save:
        save_records(parsed.save)
        return 0
    request = Request(parsed.baseline, parsed.only, parsed.rerun, parsed.baseline_models)
    return gate(request, as_json=parsed.json)


def _inspect(parsed: argparse.Namespace) -> int:
    from pipeline.cli.inspect.process import Request, inspect

    against, inputs = (name and str(name) for name in (parsed.against, parsed.inputs))
    return inspect(Request(str(parsed.file), against, inputs, tuple(parsed.shape), parsed.json))


def _import_results(parsed: argparse.Namespace) -> None:
    from pipeline.bundle.devices import import_results

    for imported in import_results(parsed.files):
        result = imported.result
        text = f"{result.device}: {result.bundle.artifact.slug}: {result}"
        print(f"{text}; {imported.file}: {imported.state}")


def _require_optuna() -> None:
    from importlib.metadata import PackageNotFoundError, version

    from pipeline.core.errors import PipelineError

    try:
        version("optuna")
    except PackageNotFoundError:
        raise PipelineError(
            "the package optuna is not installed", fix="pip install 'edgestill[search]'"
        ) from None


def _search(parsed: argparse.Namespace) -> int:
    import sys

    _require_optuna()
    from pipeline.search import tell
    from pipeline.search.page import PAGE, write_page
    from pipeline.search.session import make_teachers, open_search

    if not parsed.worker:
        make_teachers()
    worker = open_search(new=not parsed.worker)
    if not worker.times:
        print("The target's latency is of another machine: this one trains, and times nothing.")
    if sys.stdout.isatty():
        worker.say = print
    for seen in worker.work():
        print(tell.line(seen, worker.search.target), flush=True)
        print(f"  {tell.progress(worker.standing(), worker.search)}", flush=True)
        write_page(worker)
    standing = worker.standing()
    write_page(worker)
    if worker.exhausted:
        print("The space has hardly a point left that was not drawn.")
    print(tell.verdict(standing, worker.search))
    print(f"The page: {PAGE.resolve().as_uri()}")
    return 0 if standing.met_by is not None else 3


def _search_status(_: argparse.Namespace) -> None:
    _require_optuna()
    from rich.console import Console

    from pipeline.search import tell
    from pipeline.search.page import PAGE, write_page
    from pipeline.search.session import open_search

    worker = open_search(new=False)
    standing = worker.standing()
    Console().print(tell.table(standing, worker.search.target))
    print(tell.verdict(standing, worker.search))
    write_page(worker)
    print(f"The page: {PAGE.resolve().as_uri()}")


def _search_adopt(parsed: argparse.Namespace) -> int:
    _require_optuna()
    from pipeline.search.adopt import adopt, adopted
    from pipeline.search.session import open_search

    content, diff = adopted(open_search(new=False).standing(), parsed.number, parsed.name)
    print(diff, end="")
    if not parsed.yes and input("Write this to params.yaml? [y/N] ").strip().lower() != "y":
        print("params.yaml is as it was.")
        return 1
    adopt(content)
    print("Written. `dvc repro` makes and measures the new student, on test, too.")
    return 0


def _predict(parsed: argparse.Namespace) -> None:
    import json
    import sys

    from pipeline.cli.predict import predict, predictions_table

    answer = predict(parsed.images, parsed.student, parsed.backend, parsed.precision, parsed.top)
    if parsed.json:
        print(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    Console().print(predictions_table(answer))
    print(f"by {answer['runtime']}", file=sys.stderr)
