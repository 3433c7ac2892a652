"""fsx and fsstress, of xfstests' folder ltp: random operations on one file, checked against memory, and on a tree.

The tree that fsstress leaves must be readable, be the same after a new mount, and go away; and the lower branches
must be as they were.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from suites import xfstests
from suites.suite import Job, Outcome, Suite
from suites.union import Union
from tests.harness.snapshot import Snapshot, differences, snapshot

# File, share of the operations, flags.
CASES = {
    "fsx-new": ("new1", 1, ""),
    "fsx-new-unmapped": ("new2", 1, "-W -R"),
    "fsx-lower": ("lower1", 1, ""),
    "fsx-lower-unmapped": ("lower2", 1, "-W -R"),
    "fsx-reopened": ("new3", 0.25, "-c 10 -f"),
    "fsx-direct": ("new4", 0.25, "-Z -R -W -r 4096 -w 4096 -t 4096"),
    "fsx-aio": ("new5", 0.25, "-A"),
}


def _fsx(job: Job, name: str, at: Path, operations: int) -> Outcome:
    file, share, flags = CASES[name]
    # -0: exchanging ranges is for XFS.
    words: list[str | Path] = [
        "-0",
        "-q",
        "-S",
        "1",
        "-P",
        job.directory("logs"),
        "-N",
        str(int(operations * share)),
        *flags.split(),
    ]
    return name, job.test(name, [job.checkout / "ltp/fsx", *words, at / file], job.base, seconds=900)


def _fsstress(job: Job, name: str, at: Path, operations: int, seed: int, *more: str) -> Outcome:
    words: list[str | Path] = ["-d", at, "-n", str(operations), "-p", "4", "-s", str(seed), *more]
    return name, job.test(name, [job.checkout / "ltp/fsstress", *words], job.base, seconds=900)


def _fill(job: Job, lower: Path, seed: int) -> Outcome:
    """A lower branch: a file for fsx, and what fsstress makes (without device 0:0, which would be a whiteout)."""
    for name in ("fsx", "stress"):
        (lower / name).mkdir()
    (lower / f"fsx/lower{seed}").write_bytes(b"lower" * 40_000)
    return _fsstress(job, f"fill{seed}", lower / "stress", 500, seed, "-f", "mknod=0")


def _tree(top: Path) -> tuple[str, Snapshot]:
    """Why it cannot be read, and what it holds. Without times: FUSE's cached ones may not be those of the branch."""
    try:
        return "", snapshot(top, times=False)
    except (OSError, AssertionError) as error:
        return str(error), {}


def _removed(top: Path) -> str:
    try:
        shutil.rmtree(top)
    except OSError as error:
        return str(error)
    return f"{top} is still there" if top.exists() else ""


def _run(job: Job) -> Iterator[Outcome]:
    union = Union(job)
    operations = 2000 if job.quick else 20000
    lowers = union.layers.lowers
    for seed, lower in enumerate(lowers, 1):
        yield _fill(job, lower, seed)
    before = [snapshot(lower) for lower in lowers]
    with union:
        for name in CASES:
            yield _fsx(job, name, union.at / "fsx", operations)
        yield _fsstress(job, "fsstress", union.at / "stress", operations // 10, 7)
        why, left = _tree(union.at)
        yield "fsstress-readable", why
    with union:
        why, again = _tree(union.at)
        yield "fsstress-remounted", why or "; ".join(differences(left, again)[:3])
        yield "fsstress-removed", _removed(union.at / "stress")
    after = [snapshot(lower) for lower in lowers]
    changes = [line for pair in zip(before, after, strict=True) for line in differences(*pair)]
    yield "lower-unchanged", "; ".join(changes[:3])
    yield from union.complaint()


SUITE = Suite(
    name="fsx",
    variable=xfstests.SUITE.variable,
    url=xfstests.SUITE.url,
    program="ltp/fsx",
    modes=("fsx, fsstress",),
    run=_run,
)
