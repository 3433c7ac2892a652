"""Runs public test suites on pyunion and beside it on the kernel's overlayfs, and compares.

The suites are checkouts outside of this project, found by environment variables; one that is not there is named with
its address. The exit status is 1 if pyunion fails a test that docs/known-failures.md does not name, 2 if no suite is
there. Run as root by scripts/conformance.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from suites import fsx, pjdfstest, unionmount, xfstests
from suites.suite import SIDES, Job, Suite
from tests.harness.mounts import MountRefused

KNOWN_FAILURES = Path(__file__).resolve().parents[1] / "docs/known-failures.md"
SUITES = (unionmount.SUITE, pjdfstest.SUITE, fsx.SUITE, xfstests.SUITE)
Outcomes = dict[str, str]  # why each test failed, "" if it did not
# By suite, mode and side.
Results = dict[str, dict[str, dict[str, Outcomes]]]


def missing(suite: Suite) -> str:
    """Why a suite cannot be run, in a sentence; empty if it can be."""
    said = os.environ.get(suite.variable)
    if not said:
        return f"is not there: set {suite.variable} to a built checkout of {suite.url}"
    if not (Path(said) / suite.program).exists():
        return f"cannot be used: {said} ({suite.variable}) has no {suite.program}; get and build {suite.url}"
    return ""


def run(suite: Suite, mode: str, side: str, arguments: argparse.Namespace) -> Outcomes:
    """One mode on one side; a failure is told when it happens, for this may take long."""
    print(f"{suite.name}, {mode}, {side}", file=sys.stderr, flush=True)
    outcomes: Outcomes = {}
    with tempfile.TemporaryDirectory(prefix="conformance-") as base:
        Path(base).chmod(0o755)  # the tests act as other users, too
        checkout = Path(os.environ[suite.variable]).resolve()
        minutes = min(arguments.minutes, 5) if arguments.quick else arguments.minutes
        job = Job(checkout, Path(base), side, mode, arguments.quick, minutes, arguments.test)
        try:
            for name, why in suite.run(job):
                outcomes[name] = why
                if why:
                    print(f"  {name}: {why}", file=sys.stderr, flush=True)
        except (MountRefused, OSError, subprocess.SubprocessError) as error:
            outcomes["set-up"] = str(error)
    return outcomes


def run_all(suite: Suite, arguments: argparse.Namespace) -> dict[str, dict[str, Outcomes]]:
    sides = [arguments.only] if arguments.only else SIDES
    modes = suite.modes[:1] if arguments.quick else suite.modes
    return {mode: {side: run(suite, mode, side, arguments) for side in sides} for mode in modes}


def failures(outcomes: Outcomes) -> list[str]:
    return [name for name, why in outcomes.items() if why]


def counts(outcomes: Outcomes | None) -> str:
    if outcomes is None:
        return f"{'-':>15}{'-':>8}{'-':>8}"
    failed = len(failures(outcomes))
    return f"{len(outcomes):15}{len(outcomes) - failed:8}{failed:8}"


def table(results: Results, not_there: dict[str, str]) -> str:
    lines = [f"{'suite':12}{'mode':18}" + "".join(f"{side:>10}: ran    pass    fail" for side in SIDES)]
    for suite, modes in results.items():
        for mode, sides in modes.items():
            lines.append(f"{suite:12}{mode:18}" + "".join(counts(sides.get(side)) for side in SIDES))
    return "\n".join(lines + [f"{suite:12}{why}" for suite, why in not_there.items()])


def unknown(results: Results) -> list[str]:
    """Pyunion's failures that the document does not name, each once."""
    section = KNOWN_FAILURES.read_text().partition("## Conformance suites")[2]
    known = {name for cell in re.findall(r"^\| (.*?) \|", section, re.MULTILINE) for name in cell.split(", ")}
    found = [name for modes in results.values() for sides in modes.values() for name in failures(sides["pyunion"])]
    return sorted(set(found) - known)


def only_pyunion(results: Results) -> list[str]:
    """Its failures that the kernel does not have, a line each."""
    return [
        f"  {suite}, {mode}: {name}: {sides['pyunion'][name].splitlines()[0]}"
        for suite, modes in results.items()
        for mode, sides in modes.items()
        for name in failures(sides["pyunion"])
        if not sides.get("kernel", {}).get(name)
    ]


def report(results: Results, not_there: dict[str, str]) -> int:
    """Print everything; the exit status."""
    print(table(results, not_there))
    if not any("pyunion" in sides for modes in results.values() for sides in modes.values()):
        return 0
    lines = only_pyunion(results)
    print("Failures of pyunion that the kernel does not have:", *lines or ["  none"], sep="\n")
    new = unknown(results)
    if new:
        print(f"{KNOWN_FAILURES.name} does not name:", *new)
    return 1 if new else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [suite.name for suite in SUITES]
    parser.add_argument("--suite", action="append", choices=names, help="only this one (may be repeated)")
    parser.add_argument("--only", choices=SIDES, help="only this side")
    parser.add_argument("--quick", action="store_true", help="the first mode of each suite, and less of each")
    parser.add_argument("--minutes", type=float, default=60, help="stop xfstests after so many, on each side")
    parser.add_argument("--test", action="append", default=[], help="only this test of xfstests (may be repeated)")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write every outcome there")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing stays mounted then, either
    chosen = [suite for suite in SUITES if not arguments.suite or suite.name in arguments.suite]
    not_there = {suite.name: why for suite in chosen if (why := missing(suite))}
    results = {suite.name: run_all(suite, arguments) for suite in chosen if suite.name not in not_there}
    if arguments.json:
        arguments.json.write_text(json.dumps({"results": results, "not there": not_there}, indent=1))
    status = report(results, not_there)
    return status if results else 2  # nothing was shown to work


if __name__ == "__main__":
    sys.exit(main())
