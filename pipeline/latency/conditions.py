"""What else goes on while a round is measured, and which rounds it spoils.

Read from the files with which Linux tells it; other systems tell nothing, and spoil nothing.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.latency.records import Conditions

TAKEN = 0.1
"""Others, or a hypervisor, that take a larger share of the measuring cores' time spoil a round:
with a tenth of all inferences disturbed, p90 is no longer that of the undisturbed ones."""

TAKEN_ELSEWHERE = 0.25
"""So do those that keep a larger share of the other usable cores busy: caches, memory and clock
are shared. Two recorded runs, one of them beside such a neighbour, cannot be compared."""

NOISE_SECONDS = 0.03
"""Of CPU time, on top of that share: clocks of processes and cores advance in ticks of 10 ms,
and each of a dozen readings is wrong by up to one."""

SLOWEST = 0.8
"""A clock below this share of the rounds' median spoils a round: the machine was throttled, or
had not left its idle clock. Boost clocks vary by less."""


@dataclass(frozen=True)
class _Process:
    parent: int
    seconds: float


@dataclass(frozen=True)
class _Moment:
    """CPU seconds since the machine started: `busy`, `stolen` of the measuring cores, `elsewhere`
    of each other usable one."""

    nanoseconds: int
    busy: float | None
    stolen: float | None
    elsewhere: tuple[float, ...]
    processes: dict[int, _Process]


class Watch:
    """Tells the conditions of one round after the other.

    `measuring` are the cores that inferences run on, in processes that descend from this one;
    None stands for all that are usable. There, this process itself is as much a stranger as any
    other.
    """

    def __init__(self, measuring: Collection[int] | None, root: Path = Path("/")) -> None:
        self._root = root
        affinity = getattr(os, "sched_getaffinity", None)
        usable = frozenset(affinity(0) if affinity else ())
        self._measuring = usable if measuring is None else frozenset(measuring)
        self._elsewhere = usable - self._measuring
        ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
        self._tick = 1 / ticks
        self.start()

    def start(self) -> None:
        """A round begins."""
        self._begun = self._now()
        self._mhz: dict[int, list[float]] = {cpu: [] for cpu in self._measuring}

    def sample(self) -> None:
        """Look at clocks; a core that worked just now still has its clock."""
        devices = self._root / "sys/devices/system/cpu"
        for cpu, seen in self._mhz.items():
            clock = devices / f"cpu{cpu}/cpufreq/scaling_cur_freq"
            seen += [kilohertz / 1e3 for kilohertz in _numbers([clock])]

    def stop(self) -> Conditions:
        """The round ends."""
        begun, ended = self._begun, self._now()
        seconds = (ended.nanoseconds - begun.nanoseconds) / 1e9
        workers = _family(ended.processes, os.getpid()) - {os.getpid()}
        before = {pid: process.seconds for pid, process in begun.processes.items()}
        spent = {
            pid: process.seconds - before.get(pid, 0.0) for pid, process in ended.processes.items()
        }
        whole = seconds * len(self._measuring)
        others, stolen, elsewhere = None, None, None
        if begun.busy is not None and ended.busy is not None and ended.processes:
            taken = ended.busy - begun.busy - sum(spent[pid] for pid in workers)
            others = _share(taken, whole)
        if begun.stolen is not None and ended.stolen is not None:
            stolen = _share(ended.stolen - begun.stolen, whole)
        if ended.elsewhere:
            # not what this process does there: it is the same in every run
            taken = sum(ended.elsewhere) - sum(begun.elsewhere) - spent.get(os.getpid(), 0.0)
            elsewhere = _share(taken, seconds * len(ended.elsewhere))
        # medians, as one reading may meet a core that has just fallen idle
        clocks = [statistics.median(seen) for seen in self._mhz.values() if seen]
        return Conditions(
            seconds=round(seconds, 3),
            others=others,
            stolen=stolen,
            elsewhere=elsewhere,
            mhz=round(min(clocks), 1) if clocks else None,
        )

    def _now(self) -> _Moment:
        lines = [line.split() for line in _text(self._root / "proc/stat").splitlines()]
        # user, nice, system, idle, iowait, irq, softirq, steal; guests are part of user
        ticks = {
            int(name[3:]): [int(word) for word in words]
            for name, *words in lines
            if name.startswith("cpu") and name[3:].isdigit()
        }
        busy = {cpu: sum(words[i] for i in (0, 1, 2, 5, 6)) for cpu, words in ticks.items()}
        measuring = self._measuring & ticks.keys()
        return _Moment(
            nanoseconds=time.monotonic_ns(),
            busy=sum(busy[cpu] for cpu in measuring) * self._tick if measuring else None,
            stolen=sum(ticks[cpu][7] for cpu in measuring) * self._tick if measuring else None,
            elsewhere=tuple(busy[cpu] * self._tick for cpu in self._elsewhere & ticks.keys()),
            processes=self._processes(),
        )

    def _processes(self) -> dict[int, _Process]:
        found = {}
        for folder in (self._root / "proc").glob("[0-9]*"):
            # `pid (name) state parent ...`, and a name may hold anything
            words = _text(folder / "stat").rpartition(")")[2].split()
            if words:  # else it has ended
                seconds = (int(words[11]) + int(words[12])) * self._tick
                found[int(folder.name)] = _Process(int(words[1]), seconds)
        return found


def unspoiled(conditions: Sequence[Conditions]) -> int:
    """How many rounds nothing spoils."""
    return sum(not excess for excess in _excesses(conditions))


def select(conditions: Sequence[Conditions], rounds: int) -> tuple[Conditions, ...]:
    """Say of every round why it is spoiled, and keep `rounds` of them.

    Those that are not spoiled come first; where they are too few, the least spoiled fill up.
    """
    excesses = _excesses(conditions)
    worst = [max(excess.values(), default=0.0) for excess in excesses]
    kept = sorted(range(len(conditions)), key=lambda i: worst[i])[:rounds]
    return tuple(
        one.model_copy(update={"spoiled": "; ".join(excess) or None, "kept": i in kept})
        for i, (one, excess) in enumerate(zip(conditions, excesses, strict=True))
    )


def disturbance(conditions: Sequence[Conditions]) -> str | None:
    """Why the rounds that were kept of a run are none to compare with another run's, or nothing.

    Ticks that leave a short round in doubt tell more of all rounds together.
    """
    kept = [one for one in conditions if one.kept]
    if spoiled := [one.spoiled for one in kept if one.spoiled]:
        return f"{len(spoiled)} of {len(kept)} rounds are spoiled: {spoiled[0]}"
    seconds = sum(one.seconds for one in kept)
    if not seconds:
        return None
    shares = {
        field: sum(share * one.seconds for one, share in told) / seconds
        for field in ("others", "stolen", "elsewhere")
        if (told := [(one, getattr(one, field)) for one in kept if getattr(one, field) is not None])
    }
    return "; ".join(_excesses([Conditions(seconds=seconds, **shares)])[0]) or None


def _excesses(conditions: Sequence[Conditions]) -> list[dict[str, float]]:
    """Of each round what spoils it, in words, with how many times the limit it is."""
    clocks = [one.mhz for one in conditions if one.mhz is not None]
    usual = statistics.median(clocks) if clocks else 0.0
    found = []
    for one in conditions:
        noise = NOISE_SECONDS / one.seconds if one.seconds else float("inf")
        shares = (
            (one.others, TAKEN, "other processes took {:.0%} of the measuring CPUs' time"),
            (one.stolen, TAKEN, "the hypervisor took {:.0%} of the time"),
            (one.elsewhere, TAKEN_ELSEWHERE, "{:.0%} of the other CPUs' time was taken"),
        )
        excess = {
            text.format(share): share / (limit + noise)
            for share, limit, text in shares
            if share is not None and share > limit + noise
        }
        if one.mhz is not None and one.mhz < SLOWEST * usual:
            excess[f"a clock of {one.mhz:.0f} MHz where {usual:.0f} are usual"] = (
                SLOWEST * usual / max(one.mhz, 1.0)
            )
        found.append(excess)
    return found


def _family(processes: dict[int, _Process], ancestor: int) -> set[int]:
    """`ancestor` and all that descend from it."""
    family, found = set[int](), {ancestor} & processes.keys()
    while found:
        family |= found
        found = {pid for pid, one in processes.items() if one.parent in found} - family
    return family


def _share(seconds: float, of: float) -> float:
    """Within 0 and 1, although ticks may be counted to the wrong process or round."""
    return round(min(max(0.0, seconds / of), 1.0), 4) if of else 0.0


def _numbers(files: Iterable[Path]) -> list[float]:
    words = [_text(file).strip() for file in files]
    return [float(word) for word in words if word.lstrip("-").isdigit()]


def _text(file: Path) -> str:
    """Nothing where this system has no such file, or its sensor gives no answer."""
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
