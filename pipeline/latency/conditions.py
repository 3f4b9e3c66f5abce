"""The load that others put on the machine during a round, and which rounds it spoils.

It is read from /proc and /sys of Linux. Where they are missing nothing is known, and no round
counts as spoiled.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.latency.harness import system_text
from pipeline.latency.records import Conditions

TAKEN = 0.1
"""A round is spoiled if other processes, or the hypervisor, take a larger share of the measuring
cores' time: with a tenth of all inferences disturbed, p90 is no longer that of the others."""

TAKEN_ELSEWHERE = 0.25
"""A round is spoiled if others keep a larger share of the other usable cores busy: caches, memory
and clock are shared. A run beside such a load cannot be compared with one without it."""

NOISE_SECONDS = 0.03
"""CPU time by which both limits are exceeded before a round counts as spoiled: clocks of processes
and cores advance in ticks of 10 ms, and each of a dozen readings is wrong by up to one."""

SLOWEST = 0.8
"""A round is spoiled if its clock is below this share of the rounds' median: the machine was
throttled or still at its idle clock. Boost clocks vary by less."""


@dataclass(frozen=True)
class _Moment:
    """CPU seconds since the machine started."""

    nanoseconds: int
    busy: float | None
    """Of the measuring cores."""
    stolen: float | None
    """By the hypervisor from the measuring cores."""
    elsewhere: tuple[float, ...]
    """Of each other usable core."""
    processes: dict[int, tuple[int, float]]
    """Parent and CPU seconds by process id."""


class Watch:
    """Records the conditions of one round after the other."""

    def __init__(self, measuring: Collection[int] | None, root: Path = Path("/")) -> None:
        """Begin the first round.

        Args:
            measuring: the cores on which inferences run, in processes that descend from this one;
                null: all that are usable. CPU time of this process itself counts as others'.
            root: of /proc and /sys.
        """
        self._root = root
        affinity = getattr(os, "sched_getaffinity", None)
        usable = frozenset(affinity(0) if affinity else ())
        self._measuring = usable if measuring is None else frozenset(measuring)
        self._elsewhere = usable - self._measuring
        ticks = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
        self._tick = 1 / ticks
        self.start()

    def start(self) -> None:
        """Begin a round."""
        self._begun = self._now()
        self._mhz: dict[int, list[float]] = {cpu: [] for cpu in self._measuring}

    def sample(self) -> None:
        """Read the clocks of the measuring cores, right after an inference."""
        devices = self._root / "sys/devices/system/cpu"
        for cpu, seen in self._mhz.items():
            kilohertz = system_text(devices / f"cpu{cpu}/cpufreq/scaling_cur_freq")
            seen += [int(kilohertz) / 1e3] if kilohertz.isdigit() else []

    def stop(self) -> Conditions:
        """The conditions since the round began."""
        begun, ended = self._begun, self._now()
        seconds = (ended.nanoseconds - begun.nanoseconds) / 1e9
        workers = _family(ended.processes, os.getpid()) - {os.getpid()}
        spent = {
            pid: total - begun.processes.get(pid, (0, 0.0))[1]
            for pid, (_, total) in ended.processes.items()
        }
        whole = seconds * len(self._measuring)
        others, stolen, elsewhere = None, None, None
        if begun.busy is not None and ended.busy is not None and ended.processes:
            taken = ended.busy - begun.busy - sum(spent[pid] for pid in workers)
            others = _share(taken, whole)
        if begun.stolen is not None and ended.stolen is not None:
            stolen = _share(ended.stolen - begun.stolen, whole)
        if ended.elsewhere:
            # without what this process does there, which is the same in every run
            taken = sum(ended.elsewhere) - sum(begun.elsewhere) - spent.get(os.getpid(), 0.0)
            elsewhere = _share(taken, seconds * len(ended.elsewhere))
        # medians, because a core may have fallen idle just before a reading
        clocks = [statistics.median(seen) for seen in self._mhz.values() if seen]
        return Conditions(
            seconds=round(seconds, 3),
            others=others,
            stolen=stolen,
            elsewhere=elsewhere,
            mhz=round(min(clocks), 1) if clocks else None,
        )

    def _now(self) -> _Moment:
        lines = [line.split() for line in system_text(self._root / "proc/stat").splitlines()]
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

    def _processes(self) -> dict[int, tuple[int, float]]:
        found = {}
        for folder in (self._root / "proc").glob("[0-9]*"):
            # `pid (name) state parent ...`, where the name may contain anything
            words = system_text(folder / "stat").rpartition(")")[2].split()
            if words:  # none where the process has ended
                seconds = (int(words[11]) + int(words[12])) * self._tick
                found[int(folder.name)] = (int(words[1]), seconds)
        return found


def unspoiled(conditions: Sequence[Conditions]) -> int:
    """How many rounds are not spoiled."""
    return sum(not excess for excess in _excesses(conditions))


def select(conditions: Sequence[Conditions], rounds: int) -> tuple[Conditions, ...]:
    """Mark spoiled rounds, and keep `rounds` of all: the unspoiled, then the least spoiled ones.

    Returns:
        Every round with `spoiled` and `kept` filled in, in the same order.
    """
    excesses = _excesses(conditions)
    worst = [max(excess.values(), default=0.0) for excess in excesses]
    kept = sorted(range(len(conditions)), key=lambda i: worst[i])[:rounds]
    return tuple(
        one.model_copy(update={"spoiled": "; ".join(excess) or None, "kept": i in kept})
        for i, (one, excess) in enumerate(zip(conditions, excesses, strict=True))
    )


def disturbance(conditions: Sequence[Conditions]) -> str | None:
    """Why the kept rounds of a run cannot be compared with another run's; null: they can.

    Shares are also judged over all kept rounds together, where ticks matter less than in one round.
    """
    kept = [one for one in conditions if one.kept]
    if spoiled := [one.spoiled for one in kept if one.spoiled]:
        return f"{len(spoiled)} of {len(kept)} rounds are spoiled: {spoiled[0]}"
    seconds = sum(one.seconds for one in kept)
    if not seconds:
        return None
    shares = {
        field: sum(share * one.seconds for one, share in seen) / seconds
        for field in ("others", "stolen", "elsewhere")
        if (seen := [(one, getattr(one, field)) for one in kept if getattr(one, field) is not None])
    }
    return "; ".join(_excesses([Conditions(seconds=seconds, **shares)])[0]) or None


def _excesses(conditions: Sequence[Conditions]) -> list[dict[str, float]]:
    """For each round: what spoils it, as a sentence, and by how many times it exceeds the limit."""
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


def _family(processes: dict[int, tuple[int, float]], ancestor: int) -> set[int]:
    """`ancestor` and its descendants."""
    family, found = set[int](), {ancestor} & processes.keys()
    while found:
        family |= found
        found = {pid for pid, (parent, _) in processes.items() if parent in found} - family
    return family


def _share(seconds: float, of: float) -> float:
    """A share in [0, 1], although ticks may be counted for the wrong process or round."""
    return round(min(max(0.0, seconds / of), 1.0), 4) if of else 0.0
