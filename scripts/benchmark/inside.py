"""What happens inside while one workload runs: hot functions, requests of the kernel, system calls of the daemon.

The clocks of these runs mean nothing: the daemon is slowed down by being watched.
"""

from __future__ import annotations

import contextlib
import os
import pstats
import re
import shlex
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmark.runner import Bench, mounted
from benchmark.systems import PYUNION_MOUNT, Place, System
from benchmark.workload import PYUNION, Workload

_TRACING = Path("/sys/kernel/tracing")
_EVENT = "events/fuse/fuse_request_send"
_BUFFER_KIB = 1 << 16  # of each processor: a million requests
_MOST_SHOWN = 60


def profile(bench: Bench, workload: Workload) -> None:
    """Print the functions of pyunion's thread that take most time, by cProfile. Raises as Place.mount()."""
    file = bench.tools / "profile"
    words = [sys.executable, "-I", "-m", "cProfile", "-o", str(file), "-m"]
    system = System(PYUNION, shlex.join(words) + " " + PYUNION_MOUNT.replace(" mount ", " mount --foreground "))
    with bench.place(system, workload) as place:
        mounted(bench, place, workload, foreground=True)
        place.run(workload.script)
        place.unmount()
    print(f"{workload.name}: the daemon from its start to its end; times are longer by the profiler's own")
    pstats.Stats(str(file)).strip_dirs().sort_stats("tottime").print_stats(_MOST_SHOWN)


def requests(bench: Bench, workload: Workload, system: System) -> None:
    """Print the requests by opcode, and in a second run the daemon's system calls. Raises as Place.mount()."""
    with bench.place(system, workload) as place:
        if not mounted(bench, place, workload):
            print(f"{system.name} has no daemon")
            return
        operations = int(str(place.variables.get(workload.per, 1)))
        print(f"{workload.name}, {system.name}; operations: {operations}\n")
        if _has_tracing():
            with _requests_of(place) as counts:
                place.run(workload.script)
            print(f"{'request':28}{'number':>10}{'per operation':>16}")
            for opcode, number in [*counts.most_common(), ("all", counts.total())]:
                print(f"{opcode:28}{number:10}{number / operations:16.2f}")
        else:
            print(f"this kernel does not tell of FUSE requests: {_TRACING / _EVENT} is missing")
    with bench.place(system, workload) as place:
        mounted(bench, place, workload)
        print(f"\n{_system_calls(bench, place, workload)}")


def _has_tracing() -> bool:
    """Mounts tracefs where nobody has; it goes with the mount namespace that scripts/bench runs in."""
    if not (_TRACING / "events").exists():
        subprocess.run(["mount", "-t", "tracefs", "tracefs", _TRACING], capture_output=True)
    return (_TRACING / _EVENT).exists()


@contextlib.contextmanager
def _requests_of(place: Place) -> Iterator[Counter[str]]:
    """Counts the requests that the kernel sends to this mount; complete when the context ends."""
    counts: Counter[str] = Counter()
    instance = _TRACING / "instances" / place.base.name
    instance.mkdir()
    try:
        (instance / "buffer_size_kb").write_text(str(_BUFFER_KIB))
        (instance / _EVENT / "filter").write_text(f"connection == {os.minor(place.mnt.stat().st_dev)}")
        (instance / _EVENT / "enable").write_text("1")
        yield counts
        (instance / _EVENT / "enable").write_text("0")
        with (instance / "trace").open() as lines:
            for line in lines:
                if found := re.search(r"opcode \d+ \((?:FUSE_)?(\w+)\)", line):
                    counts[found[1]] += 1
        lost = sum(int(n) for cpu in instance.glob("per_cpu/*/stats") for n in _overruns(cpu))
        if lost:
            counts["(not recorded)"] = lost
    finally:
        instance.rmdir()


def _overruns(stats: Path) -> list[str]:
    return re.findall(r"^overrun: (\d+)", stats.read_text(), re.MULTILINE)


def _system_calls(bench: Bench, place: Place, workload: Workload) -> str:
    """The summary of strace, for all threads of the daemon."""
    summary = bench.tools / "strace"
    targets = [word for pid in place.daemon.pids for word in ("-p", str(pid))]
    command: list[str | Path] = ["strace", "-f", "-c", "-S", "calls", "-o", summary, *targets]
    strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert strace.stderr is not None
        strace.stderr.readline()  # it has attached itself
        place.run(workload.script)
    finally:
        strace.send_signal(signal.SIGINT)
        strace.communicate()
    return "\n".join(summary.read_text().splitlines()[:_MOST_SHOWN])
