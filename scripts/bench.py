"""Workloads on unions of the same branches, side by side: rounds are interleaved, medians and ratios are printed.

The machine's speed drops out of the ratios; absolute times say little. Times are in milliseconds, CPU and peak memory
are the daemon's. Run as root by scripts/bench.
"""

from __future__ import annotations

import argparse
import math
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmark import chart, images, inside, limits, report, runner, workloads
from benchmark.materials import Ground, tree_of
from benchmark.runner import Bench, Results
from benchmark.systems import BUILT_IN, System, from_template
from benchmark.workload import KERNEL, PYUNION, QUICK, Sizes, Workload

QUICK_SECONDS = 75  # after which no further round begins


def _template(said: str) -> System:
    try:
        system = from_template(said)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not system.is_there:
        raise argparse.ArgumentTypeError(f"{said!r} begins with a command that is not there")
    return system


def _names(said: str) -> list[str]:
    return said.split(",")


def parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    names = "\n".join(f"  {each.name:20}{each.what}; {each.state.name.lower()}" for each in workloads.ALL)
    names += "\n\nof --images:\n" + "\n".join(f"  {job.workload.name:20}{job.workload.what}" for job in images.JOBS)
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"workloads:\n{names}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=_names, metavar="WORKLOAD,...", help="these workloads")
    parser.add_argument("--systems", type=_names, metavar="NAME,...", help="these systems, and those by --system")
    parser.add_argument(
        "--system",
        action="append",
        type=_template,
        default=[],
        metavar="'NAME=mount command with {lower} {upper} {work} {mnt}'",
        help="one more system, by the command that mounts it (may be repeated)",
    )
    parser.add_argument("--rounds", type=int, help="5 if not given, with --quick up to 3")
    parser.add_argument("--quick", action="store_true", help="small sizes, and less of all: under two minutes")
    parser.add_argument("--tree", type=Path, help="a directory, or debian-root; if not given, /usr/include")
    parser.add_argument(
        "--file-system",
        metavar="TYPE",
        default="ext4",
        help="of all branches, but where a workload wants another: a new one of this type (ext4 if not given); "
        "none: they are in TMPDIR. --images is always there",
    )
    others = parser.add_argument_group("other questions, instead of the usual workloads").add_mutually_exclusive_group()
    others.add_argument("--growth", action="store_true", help="how time and memory grow with files and layers")
    others.add_argument("--images", action="store_true", help="images imported and committed, beside podman")
    others.add_argument("--idle", action="store_true", help="CPU seconds when nothing is asked")
    others.add_argument("--profile", metavar="WORKLOAD", help="pyunion's hot functions, by cProfile")
    others.add_argument("--requests", metavar="WORKLOAD", help="FUSE requests, and the daemon's system calls")
    parser.add_argument("--check", action="store_true", help="exit with 1 if pyunion is slower than it may be")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the ratios to the kernel there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all times there")
    return parser, parser.parse_args()


def chosen_workloads(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[Workload]:
    only = arguments.only or [name for name in (arguments.profile, arguments.requests) if name]
    by_name = {each.name: each for each in workloads.ALL}
    for name in only:
        if name not in by_name:
            parser.error(f"there is no workload {name}; --help lists them")
    if only:
        return [each for each in workloads.ALL if each.name in only]
    if arguments.growth or arguments.idle:
        return list(workloads.GROWTH if arguments.growth else workloads.IDLE)
    return [each for each in workloads.USUAL if not (arguments.quick and each.long)]


def chosen_systems(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[System]:
    known = {system.name: system for system in (*BUILT_IN, *arguments.system)}
    usual = [PYUNION] if arguments.profile or arguments.requests else [system.name for system in BUILT_IN]
    chosen = [*(arguments.systems or usual), *(system.name for system in arguments.system)]
    for name in chosen:
        if name not in known:
            parser.error(f"there is no system {name}; there are {', '.join(known)}")
    systems = [known[name] for name in dict.fromkeys(chosen)]
    for system in systems:
        if not system.is_there:
            print(f"{system.name} is not installed and is left out", file=sys.stderr)
    there = [system for system in systems if system.is_there]
    if arguments.check and (missing := set(limits.NEEDED) - {system.name for system in there}):
        parser.error(f"--check compares with {', '.join(sorted(missing))} too")
    if arguments.svg and KERNEL not in [system.name for system in there]:
        parser.error(f"--svg draws ratios to {KERNEL}")
    return there or parser.error("no system is left")


def chosen_jobs(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[images.Job]:
    """For --images."""
    if missing := [system.name for system in images.SYSTEMS if not system.is_there]:
        parser.error(f"--images compares with {', '.join(missing)}, which is not installed")
    if arguments.systems or arguments.system or arguments.svg:
        parser.error("--images compares pyunion with podman, and draws nothing")
    known = {job.workload.name: job for job in images.JOBS}
    for name in arguments.only or ():
        if name not in known:
            parser.error(f"there is no workload {name} of --images; there are {', '.join(known)}")
    return [job for name, job in known.items() if not arguments.only or name in arguments.only]


def look_inside(bench: Bench, workload: Workload, systems: Sequence[System], arguments: argparse.Namespace) -> int:
    try:
        if arguments.profile:
            inside.profile(bench, workload)
        else:
            for system in systems:
                inside.requests(bench, workload, system)
    except runner.FAILURES as error:
        print(f"{workload.name}: {runner.complaint(error)}", file=sys.stderr)
        return 1
    return 0


def show(results: Results, chosen: Sequence[Workload], systems: Sequence[str], arguments: argparse.Namespace) -> int:
    """Print and write everything; the exit status."""
    report.show(report.table(results, systems))
    if memory := report.memory_table(results, systems):
        report.show(memory)
    print("".join(f"{line}\n" for line in report.failures(results)), end="")
    if arguments.json:
        report.write_json(arguments.json, results, command=shlex.join(["scripts/bench", *sys.argv[1:]]))
    if arguments.svg:
        chart.draw(arguments.svg, results, systems)
    if arguments.check:
        lines = limits.broken(results, chosen)
        print("Limits that are broken:", *lines or ["none"], sep="\n  ")
        return 1 if lines else 0
    return 1 if any(outcomes[report.subject_of(systems)].failure for outcomes in results.values()) else 0


def main() -> int:
    parser, arguments = parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing stays mounted then, either
    jobs = chosen_jobs(parser, arguments) if arguments.images else []
    systems = list(images.SYSTEMS) if jobs else chosen_systems(parser, arguments)
    chosen = [job.workload for job in jobs] or chosen_workloads(parser, arguments)
    sizes = QUICK if arguments.quick else Sizes()
    rounds = arguments.rounds or (3 if arguments.quick else 5)
    seconds = QUICK_SECONDS if arguments.quick and not arguments.rounds else math.inf
    with tempfile.TemporaryDirectory(prefix="pyunion-bench-") as name:
        base = Path(name)
        runner.build_tools(base)
        usual = "" if jobs or arguments.file_system == "none" else arguments.file_system
        with Ground(base, sizes, tree_of(arguments.tree, base), usual) as ground:
            bench = Bench(ground, sizes, base)
            if arguments.profile or arguments.requests:
                return look_inside(bench, chosen[0], systems, arguments)
            if jobs:
                results = images.run_all(ground, jobs, rounds)
            else:
                results = runner.run_all(bench, chosen, systems, rounds, seconds)
    return show(results, chosen, [system.name for system in systems], arguments)


if __name__ == "__main__":
    sys.exit(main())
