"""Runs each workload on each system in turn, all of them round after round, and takes times.

So the machine's speed and what else it does drop out of the ratios. Knows nothing of how results are shown.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmark.materials import Ground
from benchmark.systems import Daemon, Place, System
from benchmark.workload import Sizes, State, Workload


@dataclass
class Outcome:
    """One workload on one system. Seconds and KiB, for each round; or why it failed."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)  # of the daemon; empty without one
    peak: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)  # what it holds then, for workloads that ask for it
    kept: list[int] = field(default_factory=list)  # what it still holds when the kernel has dropped its caches
    failure: str = ""

    @property
    def median(self) -> float | None:
        return statistics.median(self.seconds) if self.seconds and not self.failure else None


# By workload, in the order of the run, and system.
Results = dict[str, dict[str, Outcome]]


@dataclass
class Bench:
    """What all runs share."""

    ground: Ground
    sizes: Sizes
    tools: Path  # where the programs are that scripts use

    def place(self, system: System, workload: Workload) -> Place:
        material = self.ground.material(workload.material, workload.file_system)
        top = self.ground.top(workload.file_system)
        return Place(system, material, top, self.tools, self.sizes, workload.options.get(system.name, ""))

    def prepared(self, place: Place, workload: Workload) -> None:
        """Bring everything into the state that the workload wants, but for the mount."""
        if workload.state is not State.COLD:
            place.material.cache()
        if workload.prepare:
            place.run(workload.prepare, outside=True)
        subprocess.run(["sync"], check=True)  # what others left to be written is not this round's


def build_tools(directory: Path) -> None:
    source = Path(__file__).with_name("loops.c")
    subprocess.run(["gcc", "-O2", "-o", directory / "loops", source], check=True)


def complaint(error: Exception) -> str:
    """The last thing a command said, or the error itself."""
    if isinstance(error, subprocess.CalledProcessError):
        said = (error.stderr or error.output or "").strip()
        return said.splitlines()[-1] if said else f"ended with status {error.returncode}"
    return str(error)


FAILURES = (OSError, subprocess.SubprocessError)


def mounted(bench: Bench, place: Place, workload: Workload, *, foreground: bool = False) -> Daemon:
    """Mount, and let the workload find the caches in the state that it wants."""
    bench.prepared(place, workload)
    place.mount(foreground=foreground)
    if workload.state is State.WARM:
        place.run(workload.script)
    elif workload.state is State.COLD:
        bench.ground.drop_caches()
    return place.find_daemon()


def _time(bench: Bench, workload: Workload, place: Place, outcome: Outcome) -> None:
    if workload.script:
        daemon = mounted(bench, place, workload)
        spent = daemon.cpu()
        began = time.perf_counter()
        place.run(workload.script)
        seconds = time.perf_counter() - began
    else:
        bench.prepared(place, workload)
        began = time.perf_counter()
        place.mount()
        seconds = time.perf_counter() - began
        daemon, spent = place.find_daemon(), 0.0
    outcome.seconds.append(seconds)
    if daemon:
        outcome.cpu.append(daemon.cpu() - spent)
        outcome.peak.append(daemon.memory("VmHWM"))
        if workload.keeps_memory:
            outcome.after.append(daemon.memory("VmRSS"))
            Path("/proc/sys/vm/drop_caches").write_text("2")
            daemon.settle()
            outcome.kept.append(daemon.memory("VmRSS"))


def _run(bench: Bench, workload: Workload, system: System, outcome: Outcome) -> None:
    try:
        with bench.place(system, workload) as place:
            _time(bench, workload, place, outcome)
    except FAILURES as error:
        outcome.failure = complaint(error)
        print(f"  {system.name}: {outcome.failure}", file=sys.stderr, flush=True)


def in_turns(systems: Sequence[System], number: int) -> Sequence[System]:
    """Who comes first changes from round to round."""
    first = number % len(systems)
    return (*systems[first:], *systems[:first])


def run_all(
    bench: Bench, workloads: Sequence[Workload], systems: Sequence[System], rounds: int, seconds: float
) -> Results:
    """The first round is run whole; after it nothing begins when so many seconds are over."""
    results: Results = {each.name: {system.name: Outcome() for system in systems} for each in workloads}
    deadline = time.monotonic() + seconds
    for number in range(rounds):
        for workload in workloads:
            if number and time.monotonic() > deadline:
                return results
            print(f"round {number + 1}: {workload.name}", file=sys.stderr, flush=True)
            for system in in_turns(systems, number):
                outcome = results[workload.name][system.name]
                if not outcome.failure:  # it would fail again
                    _run(bench, workload, system, outcome)
    return results
