"""Kills the daemon, its system calls, its clients and its power at every point of every kind of change, and counts
what is lost; and puts it under load for a while.

Prints a table: tries, faults survived, losses. The exit status is 1 if anything was lost, and each loss is told. Run as
root by scripts/reliability.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from trials import clients, faults, kills, power, soak, stopping
from trials.operations import OPERATIONS, Operation
from trials.union import TROUBLE, Home

CLIENTS = 150
Tries = Generator[tuple[str, str], None, None]


class Row(NamedTuple):
    """A kind of fault: for each try, where it was and what was lost, "" if nothing. With `tells` each try is told."""

    name: str
    tries: Callable[[Home, Sequence[Operation]], Tries]
    tells: bool = False


def killed(home: Home, operations: Sequence[Operation]) -> Tries:
    for operation in operations:
        for one in kills.walk(home, operation):
            yield f"{operation.name}, killed at call {one.number}, {one.call}", one.lost


def failed(home: Home, operations: Sequence[Operation]) -> Tries:
    for operation in operations:
        for one in faults.walk(home, operation):
            yield f"{operation.name}, {one.error} at call {one.number}, {one.call}", one.lost


def interrupted(extension: bool) -> Callable[[Home, Sequence[Operation]], Tries]:
    def tries(home: Home, operations: Sequence[Operation]) -> Tries:
        for one in clients.walk(home, operations, CLIENTS, extension=extension):
            yield f"client killed at call {one.number}", one.lost

    return tries


def without_power(home: Home, operations: Sequence[Operation]) -> Tries:
    for kind in power.KINDS:
        with power.machine(kind, home.base) as machine:
            for operation in operations:
                for one in power.walk(machine, operation):
                    yield f"{operation.name}, power cut on {kind} {one.when}", one.lost


def loaded(minutes: float) -> Callable[[Home, Sequence[Operation]], Tries]:
    def tries(home: Home, operations: Sequence[Operation]) -> Tries:
        yield from soak.walk(home, minutes)

    return tries


ROWS = {
    "killed": Row("daemon killed at a system call", killed),
    "failed": Row("system call fails", failed),
    "clients": Row("client killed", interrupted(True)),
    "bare": Row("client killed, without the extension", interrupted(False)),
    "power": Row("power cut", without_power),
    "soak": Row("mixed load", loaded(1), tells=True),
}


@contextmanager
def place(kind: str) -> Iterator[Home]:
    """A home on a file system of its own."""
    with tempfile.TemporaryDirectory(prefix="reliability-") as name:
        subprocess.run(["mount", "-t", "tmpfs", kind, name], check=True)
        try:
            yield Home(Path(name))
        finally:
            subprocess.run(["umount", name], check=True)


def run(kind: str, operations: Sequence[Operation]) -> Counter[bool]:
    """How many tries lost something, and how many did not; a loss is told when it happens. The try that a signal finds
    is not counted: a signal to all processes of the run has disturbed it."""
    outcomes: Counter[bool] = Counter()
    row = ROWS[kind]
    try:
        with place(kind) as home, closing(row.tries(home, operations)) as tries:
            for where, lost in tries:
                if stopping.asked():
                    break
                outcomes[bool(lost)] += 1
                if lost or row.tells:
                    print(f"{where}: {lost or 'well'}", file=sys.stderr, flush=True)
    except (subprocess.SubprocessError, *TROUBLE):
        if not stopping.asked():
            raise
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=ROWS, help="only this kind of fault (may be repeated)")
    parser.add_argument(
        "--soak", metavar="MINUTES", type=float, nargs="?", const=30.0, help="only load, for so long (30; else it is 1)"
    )
    parser.add_argument("--operation", default="", help="only operations whose name has this in it")
    arguments = parser.parse_args()
    stopping.listen()
    operations = [operation for operation in OPERATIONS if arguments.operation in operation.name]
    print(f"{'':40}{'tries':>8}{'survived':>10}{'losses':>8}", flush=True)
    losses = 0
    chosen = arguments.only or list(ROWS)
    if arguments.soak is not None:
        ROWS["soak"] = ROWS["soak"]._replace(tries=loaded(arguments.soak))
        chosen = ["soak"]
    for kind in chosen:
        outcomes = run(kind, operations)
        print(f"{ROWS[kind].name:40}{sum(outcomes.values()):8}{outcomes[False]:10}{outcomes[True]:8}", flush=True)
        losses += outcomes[True]
        if number := stopping.asked():
            print(f"stopped by {signal.Signals(number).name}", file=sys.stderr)
            return 128 + number
    return 1 if losses else 0


if __name__ == "__main__":
    sys.exit(main())
