"""A progress bar with rate and remaining time; shows nothing without a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
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
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task(label, total=total, completed=done, unit=unit)
        for item in items:
            yield item
            progress.advance(task, step)
