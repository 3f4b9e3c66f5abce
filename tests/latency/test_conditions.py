from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.latency import conditions
from pipeline.latency.conditions import (
    SLOWEST,
    TAKEN,
    TAKEN_ELSEWHERE,
    Watch,
    disturbance,
    select,
    unspoiled,
)
from pipeline.latency.records import Conditions

ELSEWHERE, MEASURING = 0, 1
"""CPUs of an invented machine."""
TICKS = os.sysconf("SC_CLK_TCK")
OWN, CHILD, GRANDCHILD, STRANGER = os.getpid(), 900_001, 900_002, 900_003


class Machine:
    """A /proc and a /sys whose clocks stand still until somebody takes CPU time."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.core = {cpu: {"user": 0.0, "stolen": 0.0} for cpu in (ELSEWHERE, MEASURING)}
        self.spent = dict.fromkeys((OWN, CHILD, GRANDCHILD, STRANGER), 0.0)
        self.now = 0.0
        monkeypatch.setattr(conditions.time, "monotonic_ns", lambda: round(self.now * 1e9))
        self.write()

    def run(self, pid: int, seconds: float, cpu: int) -> None:
        self.spent[pid] += seconds
        self.core[cpu]["user"] += seconds
        self.write()

    def steal(self, seconds: float, cpu: int) -> None:
        self.core[cpu]["stolen"] += seconds
        self.write()

    def clock(self, megahertz: int, cpu: int) -> None:
        file = self.root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{megahertz * 1000}\n")

    def write(self) -> None:
        lines = ["cpu  1 2 3 4 5 6 7 8 9 10"]
        for cpu, taken in self.core.items():
            user, stolen = (round(taken[kind] * TICKS) for kind in ("user", "stolen"))
            lines.append(f"cpu{cpu} {user} 0 0 7777 88 0 0 {stolen} 0 0")
        (self.root / "proc").mkdir(exist_ok=True)
        (self.root / "proc/stat").write_text("\n".join([*lines, "intr 1 2 3", ""]))
        parents = {OWN: 1, CHILD: OWN, GRANDCHILD: CHILD, STRANGER: 1}
        for pid, parent in parents.items():
            folder = self.root / f"proc/{pid}"
            folder.mkdir(exist_ok=True)
            ticks = round(self.spent[pid] * TICKS)
            name = "a (bad) name" if pid == STRANGER else "python"
            words = [str(parent), *["0"] * 9, str(ticks - ticks // 3), str(ticks // 3), "0", "0"]
            (folder / "stat").write_text(f"{pid} ({name}) R {' '.join(words)}\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_cpu_time_of_our_workers_is_not_that_of_others(machine: Machine) -> None:
    watch = Watch([MEASURING], machine.root)
    machine.now += 10
    for pid in (CHILD, GRANDCHILD):
        machine.run(pid, 2.0, MEASURING)
    alone = watch.stop()
    assert (alone.seconds, alone.others, alone.stolen) == (10.0, 0.0, 0.0)
    for stranger in (STRANGER, OWN):  # the parent is kept to no core, and may be in the way
        watch.start()
        machine.now += 10
        machine.run(CHILD, 3.0, MEASURING)
        machine.run(stranger, 4.0, MEASURING)
        assert watch.stop().others == pytest.approx(0.4, abs=1e-3)


def test_others_spoil_a_round_on_other_cores_only_when_they_take_more(machine: Machine) -> None:
    for cpu, seconds, clean in (
        (MEASURING, 2.0, False),
        (ELSEWHERE, 2.0, True),
        (ELSEWHERE, 5.0, False),
    ):
        watch = Watch([MEASURING], machine.root)
        machine.now += 10
        machine.run(CHILD, 5.0, MEASURING)
        machine.run(STRANGER, seconds, cpu)
        found = watch.stop()
        assert bool(unspoiled([found])) == clean
        share = pytest.approx(seconds / 10, abs=1e-3)
        assert (found.others, found.elsewhere) == ((share, 0.0) if cpu == MEASURING else (0, share))
    watch = Watch([MEASURING], machine.root)
    machine.now += 10
    machine.run(OWN, 5.0, ELSEWHERE)  # the parent, which is there in every run
    assert watch.stop().elsewhere == 0.0
    watch = Watch([ELSEWHERE, MEASURING], machine.root)
    machine.now += 10
    machine.run(STRANGER, 5.0, ELSEWHERE)
    assert watch.stop().others == pytest.approx(0.25, abs=1e-3)


def test_stolen_time_counts_on_the_cores_that_measure(machine: Machine) -> None:
    watch = Watch([MEASURING], machine.root)
    machine.now += 10
    machine.steal(2.0, MEASURING)
    assert watch.stop().stolen == pytest.approx(0.2)
    watch.start()
    machine.now += 10
    machine.steal(2.0, ELSEWHERE)
    assert watch.stop().stolen == 0.0


def test_the_usual_clock_of_a_round_counts(machine: Machine) -> None:
    watch = Watch([MEASURING], machine.root)
    watch.start()
    for megahertz in (3000, 2500, 2800):
        machine.clock(megahertz, MEASURING)
        watch.sample()
    machine.now += 1
    assert watch.stop().mhz == 2800.0
    watch.start()
    machine.now += 1
    assert watch.stop().mhz is None


def test_the_clock_is_the_slowest_cores_and_one_idle_reading_is_not_its_clock(
    machine: Machine,
) -> None:
    watch = Watch([ELSEWHERE, MEASURING], machine.root)
    for here, there in ((3000, 2600), (800, 2500), (3100, 2700)):
        machine.clock(here, ELSEWHERE)
        machine.clock(there, MEASURING)
        watch.sample()
    machine.now += 1
    assert watch.stop().mhz == 2600.0


def test_a_system_that_tells_nothing_spoils_nothing(tmp_path: Path) -> None:
    watch = Watch(None, tmp_path)
    watch.sample()
    found = watch.stop()
    assert (found.others, found.stolen, found.elsewhere, found.mhz) == (None,) * 4
    assert unspoiled([found] * 3) == 3


def test_this_machine_tells_that_a_round_is_ours() -> None:
    cpu = max(os.sched_getaffinity(0))
    code = (
        f"import os, time; os.sched_setaffinity(0, [{cpu}]); input(print('ready', flush=True)); "
        "end = time.process_time() + 0.4\n"
        "while time.process_time() < end: pass\n"
        "input(print('done', flush=True))"
    )
    words = [sys.executable, "-c", code]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as worker:
        assert worker.stdin and worker.stdout and worker.stdout.readline() == "ready\n"
        watch = Watch([cpu])
        print(file=worker.stdin, flush=True)
        assert worker.stdout.readline().endswith("done\n")
        found = watch.stop()
        print(file=worker.stdin, flush=True)
    assert found.others is not None and found.stolen is not None and found.seconds >= 0.4
    # one CPU is taken at most once: what our worker took is not counted as theirs
    assert found.others <= 1.1 - 0.4 / found.seconds


def rounds(*others: float, **fields: float) -> list[Conditions]:
    return [Conditions(seconds=10.0, others=share, **fields) for share in others]


def test_quiet_rounds_are_all_kept() -> None:
    quiet = rounds(0.0, 0.05, 0.1, stolen=0.05, mhz=3000.0)
    chosen = select(quiet, 3)
    assert unspoiled(quiet) == 3
    assert all(one.kept and one.spoiled is None for one in chosen)


def test_rounds_that_others_spoil_are_marked_and_dropped() -> None:
    seen = rounds(0.0, 0.4, 0.05, 0.0)
    chosen = select(seen, 3)
    assert unspoiled(seen) == 3
    assert [one.kept for one in chosen] == [True, False, True, True]
    assert chosen[1].spoiled == "other processes took 40% of the measuring CPUs' time"


def test_the_least_spoiled_fill_up_and_stay_marked() -> None:
    chosen = select(rounds(0.9, 0.3, 0.0, 0.6, 0.2), 3)
    assert [one.kept for one in chosen] == [False, True, True, False, True]
    assert [one.spoiled is None for one in chosen] == [False, False, True, False, False]


def test_a_low_clock_and_stolen_time_spoil_a_round_too() -> None:
    seen = [Conditions(seconds=5.0, mhz=mhz) for mhz in (3000.0, 2900.0, 3100.0, 1500.0)]
    seen[1] = seen[1].model_copy(update={"stolen": 0.5})
    chosen = select(seen, 2)
    assert [one.kept for one in chosen] == [True, False, True, False]
    assert chosen[1].spoiled == "the hypervisor took 50% of the time"
    assert chosen[3].spoiled == "a clock of 1500 MHz where 2950 are usual"
    just = [Conditions(seconds=5.0, mhz=mhz) for mhz in (1000.0, 1000.0, 1000 * SLOWEST)]
    assert unspoiled(just) == 3


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.5, 2.0])
def test_ticks_of_the_clocks_spoil_no_short_round(seconds: float) -> None:
    """Two ticks in which ours was counted to others."""
    wrong = min(2 / TICKS / seconds, 1.0)
    assert unspoiled([Conditions(seconds=seconds, others=wrong, stolen=wrong)]) == 1


def test_a_neighbour_who_takes_half_a_core_is_seen_in_a_round_of_a_tenth_of_a_second() -> None:
    assert unspoiled([Conditions(seconds=0.1, others=0.5)]) == 0
    assert unspoiled([Conditions(seconds=60.0, others=TAKEN + 0.01)]) == 0
    assert unspoiled([Conditions(seconds=60.0, others=TAKEN)]) == 1


def test_a_neighbour_whom_no_short_round_can_see_is_seen_in_all_of_them_together() -> None:
    share = TAKEN_ELSEWHERE + 0.15
    brief = [Conditions(seconds=0.04, elsewhere=share) for _ in range(10)]
    assert unspoiled(brief) == 10
    assert disturbance(brief) == "40% of the other CPUs' time was taken"
    assert disturbance(brief[:2]) is None
    dropped = [one.model_copy(update={"kept": False}) for one in brief]
    calm = Conditions(seconds=0.04, others=0.0, stolen=0.0, elsewhere=0.1)
    assert disturbance([calm, *dropped]) is None
    assert disturbance([Conditions(seconds=0.0)]) is None


def test_a_run_is_disturbed_by_each_spoiled_round_that_was_kept() -> None:
    assert disturbance(select(rounds(0.0, 0.4, 0.05), 2)) is None
    assert disturbance(select(rounds(0.0, 0.4, 0.05), 3)) == (
        "1 of 3 rounds are spoiled: other processes took 40% of the measuring CPUs' time"
    )
