"""The report in a real browser: it is sorted, filtered, judged by other limits, hovered over."""

from __future__ import annotations

from tests.browser import chrome  # it skips these tests where there is no selenium

# isort: split


import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.records import ArtifactRecord
from pipeline.cli.params import Params
from pipeline.compile.evidence import Evidence
from pipeline.compile.records import CompiledMetrics
from pipeline.core.files import sha256
from pipeline.data.records import PACKED, Manifest
from pipeline.latency.fingerprint import read_fingerprint
from pipeline.latency.records import BENCHMARK, LATENCIES, BenchmarkRecord, BenchmarkRow, Latency
from pipeline.report.page import HTML, report
from tests.conftest import STUDENT, fill_workspace, write_latencies

__all__ = ["chrome"]

FIGURES = {  # top-1 drop, p50 ms, bytes; no p50: not measured
    ("onnxruntime", "fp32"): (0.0, 0.4, 4_000_000),
    ("onnxruntime", "int8"): (0.002, 0.5, 1_200_000),
    ("openvino", "int8"): (0.06, 0.3, 1_250_000),
    ("tflite", "fp32"): (0.0, 0.25, 4_100_000),
    ("tflite", "int8"): (0.02, 0.1, 1_300_000),
    ("tensorrt", "fp16"): (0.0, None, 2_000_000),
}
MODEL = Artifact(STUDENT, "onnxruntime", "fp32").folder / "model.onnx"
FAST, SLOW = f"{STUDENT}-tflite-fp32", f"{STUDENT}-onnxruntime-int8"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on six artifacts: two are outside its limits, OpenVINO's only one among them,
    and one is not measured."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        params = enable(fill_workspace())
        for place, (backend, precision) in enumerate(FIGURES):
            record_answers(backend, precision, wrong=range(place, 3 * place + 2))
        record_latencies()
        report(params)
    return folder / HTML


def enable(params: Params) -> Params:
    """The same with every artifact of `FIGURES`."""
    tree = params.model_dump()
    backends = dict.fromkeys(backend for backend, _ in FIGURES)
    tree["backends"] = {"enabled": list(backends)} | {
        backend: {"precisions": [precision for name, precision in FIGURES if name == backend]}
        for backend in backends
    }
    return Params.model_validate(tree)


def record_answers(backend: str, precision: str, wrong: range) -> None:
    known = CompiledMetrics.read(Artifact(STUDENT, "onnxruntime", "fp32").metrics)
    drop, _, size = FIGURES[backend, precision]
    figures = {"top1": 0.9 - drop, "top1_drop": drop, "size_bytes": size}
    file = Artifact(STUDENT, backend, precision).metrics
    known.model_copy(update=figures).write(file)
    artifact = ArtifactRecord.read(
        Artifact(STUDENT, "onnxruntime", "fp32").folder / "artifact.json"
    )
    its = {"backend": backend, "precision": precision}
    artifact = artifact.model_copy(update=its)
    folder = Artifact(STUDENT, backend, precision).folder
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(MODEL.read_bytes())
    artifact.write(folder / "artifact.json")
    labels = np.load(PACKED / "test_labels.npy")
    answers = labels.copy()
    answers[wrong] = (labels[wrong] + 1) % 3
    logits = (
        np.eye(3, dtype=np.float32)[answers] * np.linspace(0.5, 6, 30, dtype=np.float32)[:, None]
    )
    manifest = Manifest.read(PACKED / "manifest.json")
    Evidence.of(artifact, manifest, logits, labels).write(
        Artifact(STUDENT, backend, precision).evidence
    )


def record_latencies() -> None:
    rows, medians = {}, {"reference": 0.2}
    for (backend, precision), (_, p50, _) in FIGURES.items():
        key = f"{STUDENT}/{backend}/{precision}"
        if p50 is None:
            rows[key] = BenchmarkRow(status="not_measured", reason="no NVIDIA GPU", threads=1)
        else:
            times = Latency(p50=p50, p90=1.1 * p50, p99=1.3 * p50)
            rows[key] = BenchmarkRow(status="measured", latency_ms=times, threads=1, n=120)
            medians[key] = p50
    write_latencies(medians)
    BenchmarkRecord(
        latencies_digest=sha256(LATENCIES),
        fingerprint=read_fingerprint(),
        reference=BenchmarkRow(status="measured", threads=1),
        reference_digest="d" * 64,
        rows=rows,
    ).write(BENCHMARK)


@pytest.fixture
def opened(chrome: Chrome, page: Path) -> Iterator[Chrome]:
    """The page as it is when it has just been opened; nothing of it may complain."""
    chrome.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    chrome.get(page.as_uri())
    yield chrome
    assert chrome.get_log("browser") == []


def one(chrome: Chrome, selector: str) -> WebElement:
    return chrome.find_element(By.CSS_SELECTOR, selector)


def shown(chrome: Chrome) -> list[str]:
    """Keys of the table's rows that can be seen, in their order."""
    rows = chrome.find_elements(By.CSS_SELECTOR, "#table tbody tr")
    return [row.get_attribute("id").removeprefix("row-") for row in rows if row.is_displayed()]


def column(chrome: Chrome, heading: str) -> tuple[WebElement, list[str]]:
    """The header of a column and its cells, in the order of the rows."""
    headers = chrome.find_elements(By.CSS_SELECTOR, "#table thead th")
    place = [header.text.strip() for header in headers].index(heading)
    cells = chrome.find_elements(By.CSS_SELECTOR, f"#table td:nth-child({place + 1})")
    return headers[place], [cell.text for cell in cells]


def write(field: WebElement, text: str) -> None:
    field.clear()
    field.send_keys(text)


def test_a_click_sorts_by_numbers_and_another_turns_it_round(opened: Chrome) -> None:
    header, _ = column(opened, "p50 ms")
    button = header.find_element(By.TAG_NAME, "button")
    button.click()
    unknown = "–"  # noqa: RUF001
    assert column(opened, "p50 ms")[1] == ["0.100", "0.250", "0.300", "0.400", "0.500", unknown]
    assert header.get_attribute("aria-sort") == "ascending"
    button.send_keys(Keys.ENTER)
    assert column(opened, "p50 ms")[1] == ["0.500", "0.400", "0.300", "0.250", "0.100", unknown]
    assert header.get_attribute("aria-sort") == "descending"
    other, _ = column(opened, "Precision")
    other.find_element(By.TAG_NAME, "button").click()
    assert column(opened, "Precision")[1] == ["fp16", "fp32", "fp32", "int8", "int8", "int8"]
    assert header.get_attribute("aria-sort") == "none"


def test_sizes_sort_as_numbers_though_they_have_commas(opened: Chrome) -> None:
    header, _ = column(opened, "kB")
    header.find_element(By.TAG_NAME, "button").click()
    assert column(opened, "kB")[1] == ["1,200", "1,250", "1,300", "2,000", "4,000", "4,100"]


def test_filters_hide_rows_and_fade_their_marks(opened: Chrome) -> None:
    assert len(shown(opened)) == 6
    filters = one(opened, "#filters")
    Select(filters.find_element(By.NAME, "backend")).select_by_visible_text("LiteRT")
    assert shown(opened) == [FAST, f"{STUDENT}-tflite-int8"]
    assert one(opened, "#shown").text == "2 of 6 shown"
    for plot in ("pareto-point", "pareto-label", "latencies-strip"):
        faded = {
            backend: "dim"
            in one(opened, f"[id='{plot}-{STUDENT}-{backend}']").get_attribute("class")
            for backend in ("tflite-fp32", "onnxruntime-fp32")
        }
        assert faded == {"tflite-fp32": False, "onnxruntime-fp32": True}
    write(filters.find_element(By.NAME, "text"), "outside")
    assert shown(opened) == [f"{STUDENT}-tflite-int8"]
    filters.find_element(By.CSS_SELECTOR, "button").click()
    opened.execute_async_script("setTimeout(arguments[0], 20)")
    assert len(shown(opened)) == 6


def verdict(chrome: Chrome) -> list[str]:
    """All that other limits may change."""
    parts = [one(chrome, "#verdict .lead").text, *column(chrome, "Limits")[1]]
    cards = [card.text for card in chrome.find_elements(By.CSS_SELECTOR, ".card")]
    best = [row.get_attribute("id") for row in chrome.find_elements(By.CSS_SELECTOR, "tr.best")]
    return parts + cards + sorted(best)


def test_the_script_judges_as_the_report_did(opened: Chrome) -> None:
    def judged() -> list[str]:
        """The verdict without the limits' own words, which tell of the one that is tried."""
        parts = opened.find_elements(By.CSS_SELECTOR, "#count, #fastest, .card strong, tr.best")
        return [part.text for part in parts] + column(opened, "Limits")[1]

    before, everything = judged(), verdict(opened)
    assert everything[0].startswith("4 of 6 artifacts keep all limits: top-1 drop at most 0.01, ")
    field = one(opened, "[name=max_kb]")
    write(field, "1")
    assert one(opened, "#count").text == "0 of 6"
    write(field, "9999")  # which they all keep: the script judges them, but to no other end
    assert "size at most 9999 kB" in one(opened, "#bounds").text
    assert judged() == before
    field.clear()
    assert verdict(opened) == everything


def test_other_limits_change_the_recommendation_at_once(opened: Chrome) -> None:
    before = verdict(opened)
    write(one(opened, "[name=max_p50_ms]"), "0.3")
    write(one(opened, "[name=max_top1_drop]"), "0.05")
    lead = one(opened, "#verdict .lead").text
    assert lead.startswith("2 of 6") and "p50 at most 0.3 ms" in lead
    assert lead.endswith(f"{STUDENT} LiteRT int8, p50 0.100 ms.")
    onnxruntime, openvino, litert, tensorrt = (
        card.text for card in opened.find_elements(By.CSS_SELECTOR, ".card")
    )
    assert "none to recommend" in onnxruntime and "keeps these limits" in onnxruntime
    assert "none to recommend" in openvino and "keeps these limits" in openvino
    assert f"{STUDENT} int8" in litert
    assert "none to recommend" in tensorrt and "not measured: no NVIDIA GPU" in tensorrt
    assert column(opened, "Limits")[1] == [
        *("outside", "outside", "outside", "within", "within", "outside"),
    ]
    one(opened, "#limits button").click()
    opened.execute_async_script("setTimeout(arguments[0], 20)")
    assert verdict(opened) == before


def test_the_limits_of_params_bring_the_page_back(opened: Chrome) -> None:
    before = verdict(opened)
    (card,) = (text for text in before if text.startswith("OpenVINO\n"))
    excess = "outside the limits of params.yaml: its top-1 drops by more than 0.01"
    assert excess in card and excess in one(opened, ".notes").text
    field = one(opened, "[name=max_top1_drop]")
    for back in (lambda: one(opened, "#limits button").click(), lambda: write(field, "0.01")):
        write(field, "0.07")
        assert f"{STUDENT} int8" in verdict(opened)[before.index(card)]
        back()
        opened.execute_async_script("setTimeout(arguments[0], 20)")
        assert verdict(opened) == before


@pytest.mark.parametrize("mark", ["pareto-point", "latencies-strip"])
def test_a_mark_tells_what_it_stands_for(opened: Chrome, mark: str) -> None:
    tip, point = one(opened, "#tip"), one(opened, f"[id='{mark}-{FAST}']")
    assert not tip.is_displayed()
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", point)
    ActionChains(opened).pause(0.1).move_to_element(point).perform()
    assert tip.is_displayed()
    for words in (f"{STUDENT} LiteRT fp32", "0.250", "0.275", "4,100", "+0.0000", "0.9000"):
        assert words in tip.text
    assert "lit" in one(opened, f"[id='row-{FAST}']").get_attribute("class")
    ActionChains(opened).send_keys(Keys.ESCAPE).perform()
    assert not tip.is_displayed()


def test_a_keyboard_reaches_the_marks(opened: Chrome) -> None:
    point = one(opened, f"[id='pareto-point-{SLOW}']")
    opened.execute_script("arguments[0].focus({preventScroll: true})", point)
    assert f"{STUDENT} ONNX Runtime int8" in one(opened, "#tip").text
    assert "p50 ms 0.500" in point.get_attribute("aria-label")


def test_the_answers_of_the_recommended_artifact_come_first_and_others_at_will(
    opened: Chrome,
) -> None:
    def panels() -> list[str]:
        found = opened.find_elements(By.CSS_SELECTOR, ".answers")
        return [panel.get_attribute("data-key") for panel in found if panel.is_displayed()]

    assert panels() == [FAST]
    select = Select(one(opened, "#chooser select"))
    assert len(select.options) == 6
    select.select_by_value(SLOW)
    assert panels() == [SLOW]
    panel = one(opened, f".answers[data-key='{SLOW}']")
    thumbs = panel.find_elements(By.CSS_SELECTOR, ".thumb")
    wrong = int(re.search(r"(\d+) of 30 images wrong", panel.text).group(1))
    assert len(thumbs) == wrong > 0
    for thumb in thumbs:
        assert thumb.value_of_css_property("background-image").startswith('url("data:image/png')
        assert thumb.size["width"] > 50


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(opened: Chrome, width: int) -> None:
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    script = "return [innerWidth, document.documentElement.scrollWidth]"
    screen, content = opened.execute_script(script)
    assert screen == width and content <= width


def luminance(colour: str) -> float:
    """Relative luminance of `rgb(r, g, b)`: WCAG 2.2."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_in_dark(opened: Chrome, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    paper = luminance(one(opened, "body").value_of_css_property("background-color"))
    assert (paper > 0.5) == (scheme == "light")
    for selector in ("body", "p", "th", ".outside td", ".notes li", "#pareto-axes_1", "nav a"):
        ink = luminance(one(opened, selector).value_of_css_property("color"))
        dark, bright = sorted((ink, paper))
        assert (bright + 0.05) / (dark + 0.05) > 4.5, selector


def test_nothing_is_loaded(opened: Chrome) -> None:
    names = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    assert [name for name in opened.execute_script(names) if not name.startswith("data:")] == []
