"""Shows results: a table for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmark.runner import Outcome, Results
from benchmark.workload import FUSE_OVERLAYFS, PYUNION, UNIONFS


def ratio(outcomes: dict[str, Outcome], subject: str, other: str) -> float | None:
    """How often the other's time the subject takes, by medians."""
    ours, theirs = (outcomes[name].median if name in outcomes else None for name in (subject, other))
    return ours / theirs if ours is not None and theirs else None


def subject_of(systems: Sequence[str]) -> str:
    """Whose ratios are shown: pyunion's, or those of the last system that was named."""
    return PYUNION if PYUNION in systems else systems[-1]


def _milliseconds(outcome: Outcome) -> str:
    value = outcome.median
    return "fails" if outcome.failure else "-" if value is None else f"{1000 * value:.1f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _cpu(outcome: Outcome) -> str:
    return f"{median(outcome.cpu):.2f}" if outcome.cpu else "-"


def _mebibytes(values: Sequence[int]) -> str:
    return f"{max(values) / 1024:.0f}" if values else "-"


def table(results: Results, systems: Sequence[str]) -> Table:
    """Median milliseconds, the ratios, and the daemons' CPU seconds and peak memory (MiB)."""
    subject = subject_of(systems)
    others = [name for name in systems if name != subject]
    daemons = [name for name in systems if any(outcomes[name].peak for outcomes in results.values())]
    made = _new_table(("ms\n", systems), (f"{subject}\nto ", others), ("CPU s\n", daemons), ("MiB\n", daemons))
    for workload, outcomes in results.items():
        made.add_row(
            workload,
            *(_milliseconds(outcomes[name]) for name in systems),
            *(_ratio(ratio(outcomes, subject, name)) for name in others),
            *(_cpu(outcomes[name]) for name in daemons),
            *(_mebibytes(outcomes[name].peak) for name in daemons),
        )
    return made


def memory_table(results: Results, systems: Sequence[str]) -> Table | None:
    """MiB of the daemons after those workloads that ask for it, and when the kernel has dropped its caches."""
    rows = {workload: outcomes for workload, outcomes in results.items() if any(o.kept for o in outcomes.values())}
    daemons = [name for name in systems if any(outcomes[name].kept for outcomes in rows.values())]
    made = _new_table(("MiB after\n", daemons), ("dropped\n", daemons))
    for workload, outcomes in rows.items():
        kept = [_mebibytes(outcomes[name].kept) for name in daemons]
        made.add_row(workload, *(_mebibytes(outcomes[name].after) for name in daemons), *kept)
    return made if rows else None


def _new_table(*groups: tuple[str, Sequence[str]]) -> Table:
    """With a column of names, and one for each system of each group."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    made.add_column("", no_wrap=True)
    for heading, names in groups:
        for name in names:
            made.add_column(heading + _short(name), justify="right", no_wrap=True)
    return made


def _short(name: str) -> str:
    return {FUSE_OVERLAYFS: "fuse-o.", UNIONFS: "unionfs"}.get(name, name)


def show(made: Table) -> None:
    """As wide as it needs to be: a table that is cut off is of no use in a file."""
    Console(width=max(Console().width, Console(width=1000).measure(made).maximum)).print(made)


def failures(results: Results) -> list[str]:
    return [
        f"{workload}, {system}: {outcome.failure}"
        for workload, outcomes in results.items()
        for system, outcome in outcomes.items()
        if outcome.failure
    ]


def write_json(path: Path, results: Results, **more: Any) -> None:
    values = {name: {system: asdict(outcome) for system, outcome in by.items()} for name, by in results.items()}
    path.write_text(json.dumps({**more, "results": values}, indent=1) + "\n")
