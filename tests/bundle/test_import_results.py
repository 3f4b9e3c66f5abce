from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.backends.base.artifact import BUNDLES
from pipeline.bundle.device_record import Bench, Comparison, Verdict, parse_result
from pipeline.bundle.devices import DEVICES, bundle_digests, import_results
from pipeline.bundle.write import write_bundles
from pipeline.cli.commands import main
from pipeline.cli.params import Params
from pipeline.core.errors import PipelineError
from pipeline.core.files import sha256
from pipeline.core.records import METRICS
from pipeline.latency.fingerprint import read_fingerprint
from pipeline.latency.records import BENCHMARK, LATENCIES, BenchmarkRecord, BenchmarkRow, Latency
from pipeline.report.device_rows import on_devices
from pipeline.report.page import HTML, MARKDOWN, report
from pipeline.report.results import gather
from tests.bundle.test_bundle import python
from tests.conftest import write_latencies
from tests.sharing import project_files

ROOT = Path(__file__).parents[2]
STUDENT = "mnv4_small_050"
ORT, TENSORRT = f"{STUDENT}-onnxruntime-fp32", f"{STUDENT}-tensorrt-fp16"
BOARD = {"cpu": "Raspberry Pi 5 Model B Rev 1.0", "architecture": "aarch64", "cores": 4}
PHONE = {"model": "Pixel 8", "soc": "Tensor G3", "android": "14"}
Results = dict[str, dict[str, Any]]


@dataclass
class Lab:
    """Bundles of the workspace, the same in every test, and what their scripts really wrote."""

    bundles: Path
    results: Results = field(default_factory=dict)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab") / "bundles")


@pytest.fixture
def results(workspace: Params, lab: Lab) -> Results:
    """JSON of bench.py and verify.py by name, of the bundle for ONNX Runtime that is here."""
    if lab.results:
        shutil.copytree(lab.bundles, BUNDLES)
        return copy.deepcopy(lab.results)
    write_bundles(workspace)
    quick = ("--rounds", "2", "--min-runs", "20", "--min-seconds", "0.001", "--batch", "4")
    for name, options in {"bench": quick, "verify": ()}.items():
        done = python(BUNDLES / ORT / f"{name}.py", *options, "--json", "result.json")
        assert done.returncode == 0, done.stdout + done.stderr
        lab.results[name] = json.loads(Path("result.json").read_text())
    shutil.copytree(BUNDLES, lab.bundles)
    return copy.deepcopy(lab.results)


def saved(content: object, name: str = "result.json") -> Path:
    Path(name).write_text(json.dumps(content))
    return Path(name)


def take(content: object) -> Path:
    """Where the result lies once it was imported."""
    (imported,) = import_results([saved(content)])
    return imported.file


def stored() -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in DEVICES.rglob("*") if file.is_file()}


def rebuild(bundle: str) -> None:
    """Make another build of a bundle: one byte in its README.md, and the sums to it."""
    folder = BUNDLES / bundle
    (folder / "README.md").write_text("another\n")
    sums = subprocess.check_output(["sha256sum", "README.md"], cwd=folder, text=True)
    lines = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not line.endswith("README.md\n")]
    (folder / "SHA256SUMS").write_text("".join([sums, *kept]))


def test_what_the_scripts_wrote_comes_home_whole(results: Results) -> None:
    for name, kind in (("bench", Bench), ("verify", Comparison)):
        (imported,) = import_results([saved(results[name])])
        assert isinstance(imported.result, kind) and imported.state == "written"
        content = json.loads(imported.file.read_text())
        assert content == results[name] | {"unit": "cpu"}
    folders = {file.parent for file in stored()}
    assert {file.name for file in stored()} == {f"{ORT}-bench-t1.json", f"{ORT}-verify.json"}
    assert len(folders) == 1 and folders.pop().parent == DEVICES


def test_what_bundles_of_earlier_versions_wrote_still_comes_home(results: Results) -> None:
    later = {
        "p90_interval_ms", "warm_up", "overhead_ns", "peak_rss_bytes", "cpus", "throughput",
        "throughput_reason",
    }  # fmt: skip
    assert later < results["bench"].keys()
    older = {key: value for key, value in results["bench"].items() if key not in later}
    (imported,) = import_results([saved(older)])
    assert isinstance(imported.result, Bench) and imported.result.n == older["n"]
    assert all(getattr(imported.result, name) is None for name in later)


def test_importing_again_changes_nothing(results: Results) -> None:
    files = [saved(results["bench"], "bench.json"), saved(results["verify"], "verify.json")]
    import_results(files)
    before = {file: file.stat().st_mtime_ns for file in stored()}
    again = import_results(files) + import_results(list(before))
    assert [imported.state for imported in again] == ["already there"] * 4
    assert {file: file.stat().st_mtime_ns for file in stored()} == before


def test_a_newer_result_replaces_the_older_and_says_so(results: Results) -> None:
    import_results([saved(results["bench"])])
    results["bench"]["n"] += 1
    (imported,) = import_results([saved(results["bench"])])
    assert imported.state == "replaces an older one"
    (content,) = stored().values()
    assert json.loads(content)["n"] == results["bench"]["n"]


def test_threads_units_and_devices_have_places_of_their_own(results: Results) -> None:
    bench = results["bench"]
    others: list[dict[str, Any]] = [
        {"threads": 4},
        {"unit": "gpu"},
        {"unit": "npu", "threads": 4},
        {"machine": BOARD},
        {"machine": PHONE},
    ]
    files = [take(bench), *(take(bench | other) for other in others)]
    assert len(set(files)) == len(stored()) == 6
    assert [file.name for file in files[1:4]] == [
        f"{ORT}-bench-t4.json",
        f"{ORT}-bench-gpu-t1.json",
        f"{ORT}-bench-npu-t4.json",
    ]


def drop(name: str) -> Callable[[dict], None]:
    return lambda content: content.pop(name)


def put(dotted: str, value: object) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        *path, last = dotted.split(".")
        for key in path:
            content = content[key]
        content[last] = value

    return change


@pytest.mark.parametrize(
    ("script", "change", "complaint"),
    [
        ("bench", drop("threads"), "the field `threads` is missing"),
        ("bench", drop("bundle"), "the field `bundle` is missing"),
        ("bench", drop("latency_ms"), "neither `latency_ms` nor `verdict`"),
        ("bench", put("mood", "good"), "the field `mood` is unknown"),
        ("bench", put("latency_ms.p95", 1.0), "the field `latency_ms.p95` is unknown"),
        ("bench", put("latency_ms.p50", float("nan")), "`latency_ms.p50`: .*finite"),
        ("bench", put("latency_ms.p99", float("inf")), "`latency_ms.p99`: .*finite"),
        ("bench", put("latency_ms.p50", -1.0), "`latency_ms.p50`: .*greater than 0"),
        ("bench", put("p50_by_round_ms", [1.0, -1.0]), "`p50_by_round_ms.1`: .*greater than 0"),
        ("bench", put("latency_ms.p90", 1e6), "`latency_ms`: the percentiles do not rise"),
        ("bench", put("threads", "4"), "`threads`: .*integer"),
        ("bench", put("p90_interval_ms", [2.0, 1.0]), "`p90_interval_ms`: the lower limit"),
        ("bench", put("warm_up.steady", "yes"), "`warm_up.steady`: .*boolean"),
        ("bench", put("throughput.images_per_second", 0.0), "`throughput.images_per_second`"),
        ("bench", put("overhead_ns", -1), "`overhead_ns`: .*greater than or equal to 0"),
        ("bench", put("unit", "tpu"), "`unit`: .*'cpu', 'gpu' or 'npu'"),
        ("bench", put("machine", {"cores": 4}), "`machine`: neither `cpu` nor `model`"),
        ("bench", put("bundle.student", "../../x"), "`bundle.student`"),
        ("bench", put("bundle.digest", "abc"), "`bundle.digest`"),
        ("verify", drop("why"), "the field `why` is missing"),
        ("verify", drop("same_argmax"), "the field `same_argmax` is missing"),
        ("verify", put("verdict", "MAYBE"), "`verdict`: .*'PASSED' or 'FAILED'"),
        ("verify", put("same_argmax", 1.5), "`same_argmax`: .*less than or equal to 1"),
        ("verify", put("tolerances.extra", 1), "the field `tolerances.extra` is unknown"),
    ],
)
def test_what_the_scripts_do_not_write_is_refused_by_field(
    results: Results, script: str, change: Callable[[dict], None], complaint: str
) -> None:
    change(results[script])
    with pytest.raises(PipelineError, match=complaint) as raised:
        import_results([saved(results[script])])
    assert raised.value.where == "result.json" and raised.value.fix
    assert not stored()


def test_nobody_passes_without_a_comparison(results: Results) -> None:
    bare = {key: results["verify"][key] for key in ("verdict", "why", "machine", "bundle")}
    with pytest.raises(PipelineError, match="the field `runtime` is missing"):
        import_results([saved(bare)])
    import_results([saved(bare | {"verdict": "FAILED", "why": "no runtime"})])
    assert len(stored()) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"7", b"{}"])
def test_a_file_that_is_no_result_is_refused(workspace: Params, content: bytes) -> None:
    del workspace
    Path("x.json").write_bytes(content)
    with pytest.raises(PipelineError, match=r"^x\.json: not ") as raised:
        import_results([Path("x.json")])
    assert raised.value.fix


@pytest.mark.parametrize("name", ["none.json", "."])
def test_a_file_that_cannot_be_read_is_named(workspace: Params, name: str) -> None:
    del workspace
    with pytest.raises(PipelineError, match="cannot be read") as raised:
        import_results([Path(name)])
    assert raised.value.where == name


def test_results_of_another_build_are_refused(results: Results) -> None:
    digest = bundle_digests()[ORT]
    rebuild(ORT)
    alone = results["verify"] | {"bundle": {"digest": digest}}
    for content in (results["bench"], results["verify"], alone):
        with pytest.raises(PipelineError, match=f"another build.*{digest[:16]}") as raised:
            import_results([saved(content)])
        assert raised.value.fix
    assert not stored()


def test_results_of_a_bundle_that_is_not_here_are_refused(results: Results) -> None:
    shutil.rmtree(BUNDLES / ORT)
    with pytest.raises(PipelineError, match=f"{ORT}; here are {TENSORRT}") as raised:
        import_results([saved(results["bench"])])
    assert raised.value.fix and "dvc repro bundle" in raised.value.fix
    shutil.rmtree(BUNDLES)
    with pytest.raises(PipelineError, match="here are none"):
        import_results([saved(results["bench"])])


def test_all_files_are_checked_before_any_is_written(results: Results) -> None:
    good = saved(results["bench"], "good.json")
    bad = saved(results["bench"] | {"n": 0}, "bad.json")
    with pytest.raises(PipelineError, match=r"bad\.json.*`n`"):
        import_results([good, bad])
    assert not stored()


def test_the_verdict_on_a_damaged_copy_comes_home(results: Results) -> None:
    device = Path("device")
    shutil.copytree(BUNDLES / ORT, device)
    (device / "model.onnx").write_bytes(b"torn")
    assert python(device / "verify.py", "--json", "torn.json").returncode == 1
    (imported,) = import_results([Path("torn.json")])
    assert imported.file.name == f"{ORT}-verify.json"
    assert imported.result.bundle.model_dump() == results["verify"]["bundle"]
    assert str(imported.result) == "FAILED: model.onnx is not the file that was bundled"
    (device / "SHA256SUMS").unlink()
    assert python(device / "verify.py", "--json", "torn.json").returncode == 1
    with pytest.raises(PipelineError, match="which bundle it is about: SHA256SUMS"):
        import_results([Path("torn.json")])


def test_logits_that_are_no_numbers_come_home_as_json(results: Results) -> None:
    nan = {"max_logit_error": float("nan"), "mean_logit_error": float("inf")}
    failed = results["verify"] | nan | {"verdict": "FAILED", "why": "max logit error is nan"}
    file = take(failed)
    content = json.loads(file.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["max_logit_error"] is content["mean_logit_error"] is None
    (again,) = import_results([saved(failed)])
    assert again.state == "already there"


def slug(machine: dict[str, Any], results: Results) -> str:
    content = results["bench"] | {"machine": machine}
    return Bench.model_validate(content, strict=False).device_slug


def test_a_device_has_a_name_that_people_and_file_systems_read(results: Results) -> None:
    assert re.fullmatch("raspberry-pi-5-model-b-rev-1-0-[0-9a-f]{6}", slug(BOARD, results))
    assert re.fullmatch("pixel-8-tensor-g3-[0-9a-f]{6}", slug(PHONE, results))
    for name in ("../..", "小米", "Intel(R) Core(TM) i7 @ 3.20GHz" * 6, "con", "a/b\\c:d"):
        assert re.fullmatch("[a-z0-9][a-z0-9-]{0,39}-[0-9a-f]{6}", slug({"cpu": name}, results))


def test_two_machines_do_not_share_a_folder_and_one_keeps_its_own(results: Results) -> None:
    machines = [BOARD, BOARD | {"cores": 2}, BOARD | {"kernel": "6.6"}, PHONE, {"cpu": "小米"}]
    machines += [{"cpu": "华为"}, PHONE | {"android": "15"}, PHONE | {"soc": "tensor-g3"}]
    slugs = [slug(machine, results) for machine in machines]
    assert len(set(slugs)) == len(machines)
    settings = {"governor": "performance", "python": "3.13.1", "numpy": "2.4.6"}
    assert [slug(machine | settings, results) for machine in machines] == slugs
    assert [slug(dict(reversed(machine.items())), results) for machine in machines] == slugs


def test_the_command_prints_a_line_per_file(results: Results, capsys) -> None:
    far = {"max_logit_error": 1e9, "verdict": "FAILED", "why": "too far off"}
    failed = results["verify"] | far | {"machine": BOARD}
    files = [saved(results["bench"], "bench.json"), saved(failed, "verify.json")]
    assert main(["import-results", *map(str, files)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    times = results["bench"]["latency_ms"]
    assert f"{ORT}: p50 {times['p50']:.3f} ms, p90 {times['p90']:.3f} ms, 1 thread(s); " in first
    assert first.endswith("-bench-t1.json: written")
    why = f"max logit error is 1e+09, beyond {results['verify']['tolerances']['max_logit_error']}"
    assert second.startswith(f"{BOARD['cpu']}: {ORT}: FAILED: {why}; {DEVICES}/raspberry-pi")
    assert main(["import-results", str(files[0])]) == 0
    assert capsys.readouterr().out.endswith("-bench-t1.json: already there\n")


# What the report shows


@pytest.fixture
def measured(workspace: Params) -> Params:
    """As `workspace`, and the artifact for ONNX Runtime has a local latency."""
    times = Latency(p50=0.125, p90=0.25, p99=0.5)
    row = BenchmarkRow(status="measured", latency_ms=times, threads=1, n=10)
    write_latencies({"reference": 0.125, f"{STUDENT}/onnxruntime/fp32": 0.125})
    BenchmarkRecord(
        latencies_digest=sha256(LATENCIES),
        fingerprint=read_fingerprint(),
        reference=row,
        reference_digest="d" * 64,
        rows={f"{STUDENT}/onnxruntime/fp32": row},
    ).write(BENCHMARK)
    return workspace


def rows(params: Params) -> list[dict[str, str]]:
    """What the report shows of devices, without its plots."""
    return [one.cells() for one in on_devices(gather(params))]


def shown(params: Params) -> list[dict[str, str]]:
    """The rows of the section as the Markdown has them, by heading."""
    report(params)
    section = MARKDOWN.read_text().split("## On devices\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(table[0], cells, strict=True)) for cells in table[2:]]


def marks() -> list[str]:
    section = HTML.read_text().split("<h2>On devices</h2>")[1].split("<h2>")[0]
    return re.findall('<tr class="([a-z_]*)">', section)


def test_without_devices_the_report_has_no_such_section(measured: Params) -> None:
    report(measured)
    assert "On devices" not in MARKDOWN.read_text() + HTML.read_text()


def test_the_report_shows_a_device_beside_the_local_latency(
    measured: Params, results: Results
) -> None:
    times = {"p50": 1.5, "p90": 2.25, "p99": 3.0}
    many = {"images_per_second": 1234.5678, "batch": 32, "threads": 4}
    timed = {"latency_ms": times, "p50_by_round_ms": [1.25, 1.75], "throughput": many}
    take(results["bench"] | timed | {"machine": BOARD})
    take(results["verify"] | {"machine": BOARD})
    (version,) = results["bench"]["runtime"].values()
    assert shown(measured) == [
        {
            "Artifact": f"{STUDENT} ONNX Runtime fp32",
            "Device": BOARD["cpu"],
            "Runtime": f"onnxruntime {version}",
            "Threads": "1",
            "p50 ms": "1.500",
            "p90 ms": "2.250",
            "p50 here": "0.125",
            "Images/s": "1,235",
            "Verified": "PASSED",
            "Bundle": "current",
        }
    ]
    assert marks() == ["measured"]


def test_what_was_not_verified_or_not_timed_says_so(measured: Params, results: Results) -> None:
    take(results["bench"] | {"machine": PHONE, "unit": "gpu", "throughput": None})
    take(results["verify"] | {"machine": BOARD})
    timed, verified = rows(measured)
    assert timed["Images/s"] == verified["Images/s"] == "–"  # noqa: RUF001
    assert (timed["Device"], timed["Verified"]) == ("Pixel 8 (Tensor G3), gpu", "not verified")
    assert (verified["p50 ms"], verified["Verified"]) == ("–", "PASSED")  # noqa: RUF001


def test_a_failed_verdict_is_seen_at_a_glance(measured: Params, results: Results) -> None:
    why = "the runtime cannot be imported\n  what to do: pip | install"
    bare = {key: results["verify"][key] for key in ("machine", "bundle")}
    take(bare | {"verdict": "FAILED", "why": why})
    take(results["bench"])
    take(results["bench"] | {"threads": 4})
    report(measured)
    cell = r"FAILED: the runtime cannot be imported what to do: pip \| install"
    assert MARKDOWN.read_text().count(cell) == 2
    assert marks() == ["outside", "outside"]


def test_a_result_of_an_earlier_build_is_stale_not_hidden(
    measured: Params, results: Results
) -> None:
    take(results["bench"])
    take(results["verify"])
    rebuild(ORT)
    (row,) = shown(measured)
    assert (row["Bundle"], row["Verified"]) == ("stale", "PASSED")
    assert marks() == ["stale"]
    results["bench"]["bundle"]["digest"] = bundle_digests()[ORT]
    take(results["bench"])
    (row,) = rows(measured)
    assert (row["Bundle"], row["Verified"]) == ("current", "PASSED, of another build")
    shutil.rmtree(BUNDLES)
    (row,) = rows(measured)
    assert row["Bundle"] == "stale"


def test_an_artifact_that_is_asked_for_no_more_is_shown_last(
    measured: Params, results: Results
) -> None:
    folder = BUNDLES / "a-openvino-fp32"
    shutil.copytree(BUNDLES / ORT, folder)
    other = {"student": "a", "backend": "openvino", "precision": "fp32"}
    take(results["bench"] | {"bundle": other | {"digest": bundle_digests()[folder.name]}})
    shutil.rmtree(folder)
    take(results["bench"])
    first, last = rows(measured)
    assert first["Bundle"] == "current" and first["p50 here"] == "0.125"
    assert last["Artifact"] == "a OpenVINO fp32"
    assert (last["Bundle"], last["p50 here"]) == ("stale", "–")  # noqa: RUF001


def test_rows_follow_the_threads_as_numbers(measured: Params, results: Results) -> None:
    for threads in (16, 4, 2):
        take(results["bench"] | {"threads": threads})
    assert [row["Threads"] for row in rows(measured)] == ["2", "4", "16"]


def test_two_devices_of_one_name_are_told_apart(measured: Params, results: Results) -> None:
    for cores in (2, 4):
        take(results["bench"] | {"machine": BOARD | {"cores": cores}})
    names = [row["Device"] for row in rows(measured)]
    assert len(set(names)) == 2 and all(name.startswith(BOARD["cpu"]) for name in names)


def test_a_graph_that_passed_does_not_speak_for_the_engine(
    measured: Params, results: Results
) -> None:
    done = python(BUNDLES / TENSORRT / "verify.py", "--graph", "--json", "graph.json")
    assert done.returncode == 0, done.stdout
    (imported,) = import_results([Path("graph.json")])
    assert imported.file.name == f"{TENSORRT}-verify-graph.json"
    graph = json.loads(Path("graph.json").read_text())
    take(results["bench"] | {"bundle": graph["bundle"], "runtime": {"tensorrt": "10.3.0"}})
    engine, portable = rows(measured)
    assert (engine["Runtime"], engine["Verified"]) == ("tensorrt 10.3.0", "not verified")
    assert portable["Runtime"].startswith("onnxruntime") and portable["Verified"] == "PASSED"


@pytest.mark.parametrize(("runtime", "graph"), [("torch", True), ("coremltools", False)])
def test_torchs_verdict_does_not_speak_for_core_ml(
    results: Results, runtime: str, graph: bool
) -> None:
    about = results["verify"]["bundle"] | {"backend": "coreml"}
    its = parse_result(
        results["verify"] | {"bundle": about, "runtime": {runtime: "2.13.0"}}, "here", "mend it"
    )
    assert isinstance(its, Verdict) and its.by_graph == graph
    assert its.file_name.endswith("-verify-graph.json") == graph


def test_a_verdict_by_another_version_than_was_timed_names_it(
    measured: Params, results: Results
) -> None:
    take(results["bench"] | {"runtime": {"onnxruntime": "1.2.3"}})
    take(results["verify"])
    (one,) = on_devices(gather(measured))
    (version,) = results["verify"]["runtime"].values()
    assert one.verified == f"PASSED, by onnxruntime {version}"


def test_a_foreign_file_among_the_results_stops_the_report(measured: Params) -> None:
    file = DEVICES / "board" / "notes.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    with pytest.raises(PipelineError, match=r"board/notes\.json") as raised:
        report(measured)
    assert raised.value.fix and "remove it" in raised.value.fix


def test_an_import_reruns_the_report_and_nothing_else() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    above = {str(folder) for folder in (DEVICES, *DEVICES.parents)} - {"."}
    assert {name for name in stages if above & set(stages[name].get("deps", ()))} == {"report"}
    assert str(METRICS / "devices") in stages["report"]["deps"]
    # a dependency has to be there in a fresh clone, too
    assert project_files(str(DEVICES))


def phone(bench: dict[str, Any]) -> dict[str, Any]:
    """What phone.py writes: the CPU measured, the GPU in use for nothing."""
    taken = {"delegate": "TfLiteXNNPackDelegate", "operators": 9, "of": 9, "partitions": 1}
    times = {"mean": 2.5, "p50": 2.25, "p5": 2.0, "p95": 3.5, "min": 1.5, "max": 4.0}
    figures = {"n": 100, "latency_ms": times, "load_ms": 8.5, "first_ms": 5.0, "warmup_ms": 3.0}
    cpu = {"unit": "cpu", "status": "measured", "delegates": [taken], **figures}
    gpu = {"unit": "gpu", "status": "not_measured", "delegates": [], "reason": "it took nothing"}
    return {
        "bundle": bench["bundle"],
        "machine": {"model": "Google Pixel 8", "cpu": "Google Tensor G3", "android": "14"},
        "runtime": {"benchmark_model": f"sha256:{'b' * 64}"},
        "threads": 4,
        "results": [cpu, gpu],
    }


def test_a_phone_brings_home_a_result_for_each_unit(measured: Params, results: Results) -> None:
    imported = import_results([saved(phone(results["bench"]))])
    assert [one.file.name for one in imported] == [
        f"{ORT}-bench-t4.json",
        f"{ORT}-bench-gpu-t4.json",
    ]
    assert [str(one.result) for one in imported] == [
        "p50 2.250 ms, 4 thread(s), cpu",
        "gpu not measured: it took nothing",
    ]
    cpu, gpu = rows(measured)
    assert (cpu["Device"], cpu["p50 ms"]) == ("Google Pixel 8 (Google Tensor G3)", "2.250")
    assert (cpu["p90 ms"], cpu["Verified"]) == ("–", "not verified")  # noqa: RUF001
    assert gpu["Device"].endswith(", gpu") and gpu["p50 ms"] == "not measured"
    assert gpu["Verified"] == "not verified; it took nothing"
    assert len(import_results([one.file for one in imported])) == 2


def test_a_phone_without_percentiles_tells_its_mean(measured: Params, results: Results) -> None:
    content = phone(results["bench"])
    content["results"][0]["latency_ms"] = {"mean": 2.5, "min": 2.5, "max": 2.5}
    import_results([saved(content)])
    assert rows(measured)[0]["p50 ms"] == "mean 2.500"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda one: one.pop("latency_ms"), "belongs to the status `measured`"),
        (lambda one: one.update(status="failed"), "belongs to the status `measured`"),
        (lambda one: one.pop("delegates"), "the field `delegates` is missing"),
        (lambda one: one.update(mood=1), "the field `mood` is unknown"),
        (lambda one: one["latency_ms"].update(p50=float("nan")), "`latency_ms.p50`: .*finite"),
    ],
)
def test_a_phones_result_is_as_strict(results: Results, change, complaint: str) -> None:
    content = phone(results["bench"])
    change(content["results"][0])
    with pytest.raises(PipelineError, match=f"phone.py writes: .*{complaint}"):
        import_results([saved(content)])
    assert not stored()
    with pytest.raises(PipelineError, match="no list"):
        import_results([saved(content | {"results": []})])
