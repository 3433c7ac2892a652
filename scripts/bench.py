"""Workloads on unions of the same branches, side by side: rounds are interleaved, medians and ratios are printed.

The machine's speed drops out of the ratios; absolute times say little. Times are in milliseconds, CPU and peak memory
are the daemon's. Run as root by scripts/bench.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from benchmark import report, runner, workloads
from benchmark.materials import Ground, tree_of
from benchmark.runner import Bench
from benchmark.systems import BUILT_IN, System, from_template
from benchmark.workload import QUICK, Sizes, Workload


def _template(said: str) -> System:
    try:
        return from_template(said)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _names(said: str) -> list[str]:
    return said.split(",")


def parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    names = "\n".join(f"  {each.name:20}{each.what}; {each.state.name.lower()}" for each in workloads.ALL)
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=f"workloads:\n{names}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=_names, metavar="WORKLOAD,...", help="these workloads, long ones too")
    parser.add_argument("--systems", type=_names, metavar="NAME,...", help="these systems, and those by --system")
    parser.add_argument(
        *("--system", "-s"),
        action="append",
        type=_template,
        default=[],
        metavar="'NAME=mount command with {lower} {upper} {work} {mnt}'",
        help="one more system, by the command that mounts it (may be repeated)",
    )
    parser.add_argument("--rounds", type=int, help="5 if not given, with --quick 2")
    parser.add_argument("--quick", action="store_true", help="small sizes: under two minutes")
    parser.add_argument("--long", action="store_true", help="also what takes minutes")
    parser.add_argument("--tree", type=Path, help="what the tree is a copy of; if not given, /usr/include")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all times there")
    return parser, parser.parse_args()


def chosen_workloads(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[Workload]:
    by_name = {each.name: each for each in workloads.ALL}
    for name in arguments.only or ():
        if name not in by_name:
            parser.error(f"there is no workload {name}; --help lists them")
    return [each for each in workloads.ALL if (each.name in arguments.only if arguments.only else not each.long)]


def chosen_systems(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> list[System]:
    known = {system.name: system for system in (*BUILT_IN, *arguments.system)}
    chosen = list(known) if arguments.systems is None else [*arguments.systems, *(s.name for s in arguments.system)]
    for name in chosen:
        if name not in known:
            parser.error(f"there is no system {name}; there are {', '.join(known)}")
    systems = [known[name] for name in dict.fromkeys(chosen)]
    for system in systems:
        if not system.is_there:
            print(f"{system.name} is not installed and is left out", file=sys.stderr)
    return [system for system in systems if system.is_there]


def main() -> int:
    parser, arguments = parse()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing stays mounted then, either
    systems = chosen_systems(parser, arguments)
    chosen = chosen_workloads(parser, arguments)
    sizes = QUICK if arguments.quick else Sizes()
    rounds = arguments.rounds or (2 if arguments.quick else 5)
    with tempfile.TemporaryDirectory(prefix="pyunion-bench-") as name:
        base = Path(name)
        runner.build_tools(base)
        with Ground(base, sizes, tree_of(arguments.tree, base)) as ground:
            results = runner.run_all(Bench(ground, sizes, base), chosen, systems, rounds)
    shown = [system.name for system in systems]
    report.show(report.table(results, shown))
    if arguments.json:
        report.write_json(arguments.json, results, rounds=rounds, quick=arguments.quick)
    failures = report.failures(results)
    print(*failures, sep="\n", end="\n" if failures else "")
    return 1 if any(outcomes[report.subject_of(shown)].failure for outcomes in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
