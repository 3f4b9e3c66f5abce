"""The report's part on robustness: two tables and a plot, where it is measured."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.backends.base.artifact import Artifact
from pipeline.backends.base.registry import backend, title
from pipeline.compile.records import check_owner
from pipeline.data.recall import interval
from pipeline.report.params import ReportParams
from pipeline.report.plots import GREY, INK, STYLE, svg
from pipeline.report.results import REPORTS, UNKNOWN
from pipeline.report.sections import Section
from pipeline.robustness.records import (
    PGD,
    STUDENT,
    Limited,
    Measured,
    Protocol,
    RobustnessRecord,
    record_file,
)

PLOT = REPORTS / "robustness.svg"
"""Written where robustness is measured; DVC knows no output that may be absent."""

CAPTION = (
    "Accuracy by the strength of each corruption; 0 is the image as it is. Colour is the runtime, "
    "int8 is dashed, the float student black and teachers are grey. Many lines coincide."
)
_COLUMNS = 4  # of the plot
_DASHES = {"int8": (0, (3, 2))}


@dataclass(frozen=True)
class Line:
    """A network and what is recorded about it."""

    name: str
    label: str
    """In the plot."""
    status: str
    measured: Measured | None
    colour: str
    dashes: object = "-"


@dataclass(frozen=True)
class Robust:
    """A student whose robustness is recorded, with its networks."""

    student: str
    record: RobustnessRecord
    lines: tuple[Line, ...]

    @property
    def about(self) -> str:
        """How it was measured, in sentences."""
        its, record = self.record.protocol, self.record
        drawn = "all" if record.images == record.of_images else f"{record.images:,} drawn"
        return (
            f"On {drawn} of {record.of_images:,} test images. Corruptions have the strengths "
            f"{', '.join(map(str, its.strengths))} of 1 to 5. {_attacks(record, its)}"
        )

    def figures(self) -> Section:
        """The main figures of every network."""
        images, record = self.record.images, self.record
        rows = [_figures(line, record, images) for line in self.lines]
        return Section.of(f"Robustness of {self.student}", rows, ("Network", "Status"))

    def corruptions(self) -> Section:
        """Accuracy of every network under each corruption, at every strength."""
        rows = []
        for line in self.lines:
            if line.measured:
                cells = {
                    name: " / ".join(f"{accuracy:.3f}" for accuracy in by_strength)
                    for name, by_strength in line.measured.corrupted.items()
                }
                rows.append({"Network": line.name, **cells})
        return Section.of(f"{self.student} under each corruption", rows, ("Network",))


def gather_robustness(params: ReportParams) -> list[Robust]:
    """What is recorded about every student in `robustness.enabled`.

    Raises:
        PipelineError: for a record that is missing, damaged or about other files than the
            artifacts of now.
    """
    found = []
    for student in params.robustness.enabled:
        file = record_file(student)
        record = RobustnessRecord.read(file)
        lines = [Line(f"{student} (float)", "float", "measured", record.student, INK)]
        for name, its in record.teachers.items():
            lines.append(Line(f"{name} (teacher)", name, "measured", its, GREY))
        for artifact in params.backends.artifacts((student,)):
            if row := record.artifacts.get(artifact.key):
                check_owner(artifact, file, row.digests)
            lines.append(_line(artifact, record))
        found.append(Robust(student, record, tuple(lines)))
    return found


def _line(artifact: Artifact, record: RobustnessRecord) -> Line:
    row = record.artifacts.get(artifact.key)
    its = backend(artifact.backend)
    status = "not measured yet, run `dvc repro`"
    if row is not None:
        told = row.status.replace("_", " ")
        status = f"{told}: {row.reason}" if row.reason else told
        if row.evaluated_with and not its.is_own(row.evaluated_with):
            status += f" with {row.evaluated_with}"
    label = f"{title(artifact.backend)} {artifact.precision}"
    return Line(
        f"{artifact.student} {label}",
        label,
        status,
        row.measured if row else None,
        its.colour,
        _DASHES.get(artifact.precision, "-"),
    )


def _attacks(record: RobustnessRecord, its: Protocol) -> str:
    restarts = f", the strongest of {its.restarts} random starts" if its.restarts > 1 else ""
    library = f" AutoAttack ran {', '.join(record.autoattack)}." if record.autoattack else ""
    before = ", ".join(f"{name} {value:.4f}" for name, value in record.unrounded.items())
    return (
        f"Attacks on the float student change a pixel by at most {its.epsilon:g}/255; PGD takes "
        f"{its.steps} steps of {its.step_size:g}/255{restarts}.{library} Their images are rounded "
        "to uint8, and all other networks get the same ones: for them the attack is transferred. "
        f"The float student's accuracy before rounding: {before}."
    )


def _figures(line: Line, record: RobustnessRecord, images: int) -> dict[str, str]:
    measured = line.measured
    cells = {"Network": line.name, "Status": line.status}
    columns = ["Clean", "95% of clean", "Corrupted", "95% of corrupted", "mCE", "95% of mCE"]
    columns += [f"mCE to {name}" for name in record.teachers]
    attacks = list(record.student.attacked)
    for attack in attacks:
        columns += [attack.upper() if attack != "autoattack" else "AutoAttack"]
        columns += ["95% of PGD"] if attack == PGD else []
    if measured is None:
        return cells | dict.fromkeys(columns, UNKNOWN)
    mce = measured.mce
    values = [f"{measured.clean:.4f}", interval(measured.clean, images)]
    values += [f"{measured.mean_corrupted.value:.4f}", _limits(measured.mean_corrupted, 4)]
    values += [_value(mce.get(STUDENT)), _limits(mce.get(STUDENT), 3)]
    values += [_value(mce.get(name)) for name in record.teachers]
    for attack in attacks:
        accuracy = measured.attacked[attack]
        values += [f"{accuracy:.4f}"] + ([interval(accuracy, images)] if attack == PGD else [])
    return cells | dict(zip(columns, values, strict=True))


def _value(its: Limited | None) -> str:
    return UNKNOWN if its is None else f"{its.value:.3f}"


def _limits(its: Limited | None, digits: int) -> str:
    if its is None or its.interval is None:
        return UNKNOWN
    return " to ".join(f"{limit:.{digits}f}" for limit in its.interval)


def robustness_plot(found: list[Robust]) -> str:
    """Accuracy over strength, one plot per student and corruption."""
    panels = [(one, name) for one in found for name in one.record.protocol.corruptions]
    rows = -(-len(panels) // _COLUMNS)
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "robustness"}):
        figure = Figure(figsize=(9.5, 2.3 * rows + 0.5), layout="constrained")
        grid = figure.subplots(rows, _COLUMNS, sharey=True, squeeze=False)
        for axes, (one, name) in zip(grid.flat, panels, strict=True):
            _panel(axes, one, name)
            axes.set_title(name if len(found) == 1 else f"{one.student}, {name}", loc="left")
        for axes in grid[-1]:
            axes.set_xlabel("strength")
        for axes in grid[:, 0]:
            axes.set_ylabel("accuracy, %")
        figure.legend(
            *grid[0, 0].get_legend_handles_labels(), loc="outside lower center", frameon=False,
            ncols=4,
        )  # fmt: skip
        return svg(figure)


def _panel(axes: Axes, one: Robust, corruption: str) -> None:
    strengths = one.record.protocol.strengths
    order = sorted(range(len(strengths)), key=lambda i: strengths[i])
    for line in one.lines:
        if line.measured:
            by_strength = line.measured.corrupted[corruption]
            accuracy = [line.measured.clean, *(by_strength[i] for i in order)]
            axes.plot(
                [0, *(strengths[i] for i in order)], [100 * value for value in accuracy],
                marker="o", ms=2.5, lw=1, color=line.colour, linestyle=line.dashes,
                label=line.label,
            )  # fmt: skip
    axes.set_xticks([0, *sorted(strengths)])
    axes.grid(True)
