"""A progress bar with rate and remaining time; shows nothing without a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich import progress
from rich.console import Console
from rich.text import Text

T = TypeVar("T")


class _Rate(progress.ProgressColumn):
    def render(self, task: progress.Task) -> Text:
        if not task.speed:
            return Text("")
        return Text(f"{task.speed:,.0f} {task.fields['unit']}/s", style="cyan")


def track(
    items: Iterable[T],
    label: str,
    total: int,
    unit: str = "images",
    step: int = 1,
    *,
    done: int = 0,
    quiet: bool = False,
) -> Iterator[T]:
    """Yield `items` and show a progress bar on stderr.

    Args:
        items: what to iterate over.
        label: text in front of the bar.
        total: units of the whole work.
        unit: their name.
        step: units per item.
        done: units that were finished before the first item.
        quiet: show nothing.
    """
    console = Console(stderr=True)
    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        _Rate(),
        progress.TimeRemainingColumn(),
    )
    quiet = quiet or not console.is_terminal
    with progress.Progress(*columns, console=console, disable=quiet) as bar:
        task = bar.add_task(label, total=total, completed=done, unit=unit)
        for item in items:
            yield item
            bar.advance(task, step)
