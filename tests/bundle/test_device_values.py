"""Nothing in a device's result is believed that its figures or the bundle contradict, and nothing
in it reaches a terminal or a page that is not plain text."""

from __future__ import annotations

import copy
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.bundle.device_json import MOST_BYTES
from pipeline.bundle.device_record import Comparison
from pipeline.bundle.device_values import one_line
from pipeline.bundle.devices import DEVICES, import_results
from pipeline.cli.params import Params
from pipeline.core.errors import PipelineError
from pipeline.report.device_rows import on_devices
from pipeline.report.page import MARKDOWN, report
from tests.bundle.test_import_results import (
    BOARD,
    Results,
    lab,
    measured,
    phone,
    put,
    results,
    rows,
    saved,
    stored,
    take,
)

__all__ = ["lab", "measured", "results"]

TURNED, ESCAPED = "Pi \u202e5", "Pi \x1b[31m5"
"""A mark that turns the direction of writing, and a colour of terminals."""
BROWSER = {"browser": "Firefox", "browser_version": "150.0", "system": "Linux x86_64"}


@pytest.mark.parametrize(
    ("script", "change", "complaint"),
    [
        ("verify", put("max_logit_error", 1e9), "PASSED contradicts .*max logit error is 1e.09"),
        ("verify", put("max_logit_error", float("nan")), "PASSED contradicts .*not a number"),
        ("verify", put("same_argmax", 0.5), "PASSED contradicts .*50.0% of the images"),
        ("verify", put("verdict", "FAILED"), "FAILED contradicts the figures"),
        ("verify", put("tolerances.max_logit_error", 1e9), "`tolerances` is not that of"),
        ("verify", put("images", 60), "`images` is not that of the bundle"),
        ("verify", put("images", 10**5000), "not JSON: Exceeds the limit"),
        ("verify", put("images", 10**400), "`images`"),
        ("verify", put("same_argmax", 0.99), "`same_argmax` is no share of 30 images"),
        ("verify", put("top1", 0.5), "differ by more than `same_argmax` allows"),
        ("verify", put("mean_logit_error", 1e-9), "`mean_logit_error` does not fit"),
        ("bench", put("latency_ms.p50", 1e-6), "outside the medians of its rounds"),
        ("bench", put("latency_ms.p99", 1e308), "`latency_ms.p99`: .*less than or equal"),
        ("bench", put("p50_by_round_ms", [1.0]), "2 rounds do not fit 1 medians"),
        ("bench", put("load_ms", 10**400), "`load_ms`"),
        ("bench", put("threads", 10**9), "`threads`: .*less than or equal"),
        ("bench", put("warm_up.inferences", 10**30), "`warm_up.inferences`"),
        ("bench", put("machine.cpu", "x" * 201), "`machine.cpu`: .*at most 200"),
        ("bench", put("machine.cpu", TURNED), "`machine.cpu`: .*not shown"),
        ("bench", put("machine.kernel", ESCAPED), "`machine.kernel`: .*not shown"),
        ("bench", put("machine.cpu", "\ud800"), "not what bench.py writes: Invalid JSON"),
        ("bench", put("machine.mood", "good"), "the field `machine.mood` is unknown"),
        ("bench", put("machine.cores", "many"), "`machine.cores`: .*integer"),
        ("bench", put("machine.browser", "Firefox"), "`browser` and `browser_version` belong"),
        (
            "bench",
            put("machine", BROWSER),
            "not what the page writes: .*`clock_step_ms` is missing",
        ),
        ("bench", put("clock_step_ms", 0.1), "the field `clock_step_ms` is unknown"),
        ("bench", put("runtime", {ESCAPED: "1"}), r"`runtime.Pi .\[31m5.*not shown"),
        ("bench", put("bundle.student", "a" * 101), "`bundle.student`: .*at most 100"),
        ("bench", put("bundle.student", ESCAPED), "`bundle.student`: .*match pattern"),
        ("bench", put(TURNED * 50, 1), "the field `Pi .5Pi .5.* is unknown"),
    ],
)
def test_what_contradicts_itself_or_the_bundle_is_refused_in_one_sentence(
    results: Results, script: str, change: Callable[[dict], None], complaint: str
) -> None:
    change(results[script])
    text = json.dumps(results[script]) if complaint[:8] != "not JSON" else digits(results[script])
    Path("x.json").write_text(text)
    with pytest.raises(PipelineError, match=complaint) as raised:
        import_results([Path("x.json")])
    assert raised.value.what.isprintable() and len(str(raised.value)) < 600
    assert raised.value.where == "x.json" and not stored()


def digits(content: dict[str, Any]) -> str:
    """JSON with an integer that Python refuses to print."""
    return json.dumps(content | {"images": -1}).replace('"images": -1', f'"images": {"9" * 5000}')


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b'{"a": 1, "a": 2}', "`a` stands twice"),
        (b"[" * 200_000, "levels"),
        (b'{"verdict": ' * 10 + b"0" + b"}" * 10, "levels"),
        (b" " * (MOST_BYTES + 1), "larger than 256 KiB"),
        (b'{"verdict": "FAILED", "why": "\\u001b[2J\\u202e"}', "which bundle"),
        (b'{"verdict": "PASSED", "bundle": {"digest": "\\u001b[2J"}}', "which machine"),
        (b'{"verdict": "FAILED", "machine": {}, "bundle": {"digest": "\\u001b[2J"}}', "another"),
        (b'{"results": [{"unit": "cpu"}], "unit": "gpu"}', "`unit` stands in `results` and"),
    ],
)
def test_a_file_that_no_script_writes_is_refused_before_it_costs_anything(
    workspace: Params, content: bytes, complaint: str
) -> None:
    del workspace
    Path("x.json").write_bytes(content)
    with pytest.raises(PipelineError, match=complaint) as raised:
        import_results([Path("x.json")])
    assert raised.value.what.isprintable() and raised.value.where == "x.json"


def test_a_large_file_of_wrong_items_costs_little(results: Results) -> None:
    items = [""] * ((MOST_BYTES - 4000) // 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(PipelineError, match=r"`p50_by_round_ms\.0`"):
        import_results([saved(results["bench"] | {"p50_by_round_ms": items})])
    assert time.process_time() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_a_pipe_is_not_waited_for(workspace: Params) -> None:
    del workspace
    os.mkfifo("x.json")
    with pytest.raises(PipelineError, match="a device or a pipe"):
        import_results([Path("x.json")])


def test_a_phone_tells_of_each_unit_once_and_in_order(results: Results) -> None:
    content = phone(results["bench"])
    twice = content | {"results": [content["results"][0]] * 2}
    with pytest.raises(PipelineError, match="two results are about the same unit"):
        import_results([saved(twice)])
    content["results"][0]["latency_ms"]["min"] = 3.0
    with pytest.raises(PipelineError, match="do not rise from min to max"):
        import_results([saved(content)])
    content = phone(results["bench"])
    content["results"][0]["delegates"][0]["operators"] = 10
    with pytest.raises(PipelineError, match="more operators are taken than there are"):
        import_results([saved(content)])


def test_what_a_runtime_says_is_shown_as_plain_text(measured: Params, results: Results) -> None:
    why = f"no runtime:\n\x1b[2J{TURNED}" + "!" * 5000
    bare = {key: results["verify"][key] for key in ("machine", "bundle")}
    (imported,) = import_results([saved(bare | {"verdict": "FAILED", "why": why})])
    shown = "FAILED: no runtime: \ufffd[2JPi \ufffd5!!"
    assert str(imported.result).startswith(shown) and len(str(imported.result)) < 1100
    report(measured)
    assert shown in MARKDOWN.read_text() and "\x1b" not in MARKDOWN.read_text()


def test_a_verdicts_reason_is_made_of_its_figures(measured: Params, results: Results) -> None:
    far = {"max_logit_error": 1e9, "verdict": "FAILED", "why": "it is nearly right"}
    take(results["verify"] | far)
    (row,) = rows(measured)
    assert row["Verified"].startswith("FAILED: max logit error is 1e+09, beyond ")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (put("verdict", "FAILED"), "FAILED contradicts the figures"),
        (put("tolerances.mean_logit_error", 1.0), "`tolerances` is not that of the bundle"),
        (put("machine.cpu", "another"), "not the place of what it holds"),
    ],
)
def test_an_edited_record_stops_the_report(
    measured: Params, results: Results, change: Callable[[dict], None], complaint: str
) -> None:
    file = take(results["verify"])
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(PipelineError, match=complaint) as raised:
        rows(measured)
    assert raised.value.where == str(file) and raised.value.fix


@pytest.mark.parametrize(
    "machine",
    [
        {"cpu": "QEMU Virtual CPU version 2.5+", "architecture": "x86_64"},
        {"cpu": "VirtualApple @ 2.50GHz", "architecture": "x86_64"},
        {"cpu": "Intel(R) Xeon(R) Processor", "architecture": "aarch64"},
        BOARD | {"emulator": "QEMU"},
    ],
)
def test_an_emulators_latency_is_not_shown_as_a_devices(
    measured: Params, results: Results, machine: dict[str, Any]
) -> None:
    take(results["bench"] | {"machine": machine})
    take(results["verify"] | {"machine": machine})
    (row,) = rows(measured)
    assert row["Device"].startswith(f"{machine['cpu']}, emulated by ")
    assert (row["p50 ms"], row["Verified"]) == ("emulated", "PASSED")
    assert row["p90 ms"] == row["p50 here"] == row["Images/s"] == "–"  # noqa: RUF001


def test_a_browser_stays_one_device_when_it_is_updated(results: Results) -> None:
    of_page = {"clock_step_ms": 0.02, "cross_origin_isolated": True}
    places = {
        take(results["bench"] | of_page | {"machine": BROWSER | {"browser_version": version}})
        for version in ("150.0", "151.0")
    }
    (place,) = places
    assert place.parent.name.startswith("firefox-on-linux-x86-64-")
    assert json.loads(place.read_text())["clock_step_ms"] == 0.02


def test_a_real_cpu_is_none_that_is_emulated(results: Results) -> None:
    for machine in (BOARD, {"cpu": "Intel(R) Xeon(R)", "architecture": "x86_64"}):
        (imported,) = import_results([saved(results["bench"] | {"machine": machine})])
        assert not imported.result.emulated and "p50" in str(imported.result)


def test_text_becomes_one_plain_line() -> None:
    assert one_line("a\n b\t\x1b[0m\u200b") == "a b \ufffd[0m\ufffd"
    assert one_line("x" * 50, 10) == "x" * 9 + "…"


# Any JSON in any place of a result

ODD = [
    None, True, 0, -1, 1e308, -1e308, 1e-308, float("nan"), float("inf"), 10**400, 2**63, "",
    "PASSED", TURNED, ESCAPED, "\ud800", "\0", "x" * 1000, "../..", [], {}, [[]], [1.0], {"": 0},
]  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(ODD),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    ),
)


def places(content: Any) -> list[tuple[Any, Any]]:
    """Every container of JSON with each of its keys."""
    if not isinstance(content, dict | list):
        return []
    keys = list(content) if isinstance(content, dict) else range(len(content))
    return [pair for key in keys for pair in [(content, key), *places(content[key])]]


@settings(
    max_examples=500, deadline=2000, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(data=st.data())
def test_any_json_is_imported_as_plain_text_or_refused(
    results: Results, data: st.DataObject
) -> None:
    originals = [results["bench"], results["verify"], phone(results["bench"])]
    content = copy.deepcopy(data.draw(st.sampled_from(originals)))
    for _ in range(data.draw(st.integers(1, 3))):
        container, key = data.draw(st.sampled_from(places(content)))
        if isinstance(container, dict) and data.draw(st.integers(0, 4)) == 0:
            key = data.draw(st.text(max_size=10) | st.sampled_from([ESCAPED, "verdict", "status"]))
        container[key] = copy.deepcopy(data.draw(VALUES))
        if not places(content):
            break
    Path("fuzz.json").write_text(json.dumps(content))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        imported = import_results([Path("fuzz.json")])
    except PipelineError as error:
        assert error.what.isprintable() and len(error.what) < 1000
        return
    finally:
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
    for one in imported:
        result = one.result
        assert f"{result.device}{result}{one.file}".isprintable()
        if isinstance(result, Comparison):
            limit = result.tolerances.max_logit_error
            error = result.max_logit_error
            assert (result.verdict == "PASSED") <= (error is not None and error <= limit)
    for row in on_devices([]):
        assert all(text.isprintable() for text in row.cells().values())
    for file in DEVICES.glob("*/*.json"):
        file.unlink()


@settings(max_examples=200, deadline=2000, derandomize=True, database=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.binary(max_size=300) | VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_other_file_is_refused(workspace: Params, content: bytes) -> None:
    del workspace
    Path("fuzz.json").write_bytes(content)
    with pytest.raises(PipelineError) as raised:
        import_results([Path("fuzz.json")])
    assert raised.value.what.isprintable() and len(raised.value.what) < 1000
