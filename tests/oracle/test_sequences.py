"""The oracle: the same operations on pyunion and on the kernel's overlayfs, compared after every step.

Compared are the result or errno of each operation, the whole tree after it, at the end the upper branches with
their marks, and then each upper as the other implementation mounts it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.harness import leaks
from tests.harness.files import run, tree
from tests.harness.mounts import KernelMount, Layers, Mount, PyunionMount, unmount
from tests.harness.snapshot import TELLING_MARKS, Entry, Snapshot, assert_same, snapshot
from tests.oracle.model import SKELETON, Op, Thing, branches, likely, operations


@pytest.fixture(scope="module")
def memory(_can_mount: None) -> Iterator[Path]:
    """A file system in memory, because an example makes and removes some hundred files."""
    base = leaks.make_scratch()
    run("mount", "-t", "tmpfs", "-o", "mode=755", "oracle", base)
    yield base
    unmount(base)
    leaks.remove_scratch(base)


class Side:
    """One of the two: a mount with its own branches, which are made in the same way on both sides.

    The topmost lower branches are what the kernel made of those below by `histories`: they have redirects,
    opaque directories and whiteouts where overlayfs puts them. Where a directory for a branch is there already, as
    another file system's root, it is taken.
    """

    def __init__(self, base: Path, kind: type[Mount], contents: list[list[Thing]], histories: list[list[Op]]) -> None:
        self.kind = kind
        self.options: list[str] = []  # besides those of both sides
        self.base = base
        self.point = base / "union"
        self.point.mkdir(parents=True)
        self.lowers = [base / f"lower{number}" for number in range(len(contents) + 1)]
        for lower, things in zip(self.lowers, [*contents, SKELETON], strict=True):
            lower.mkdir(exist_ok=True)
            for thing in things:
                thing.put(lower)
        for number, history in enumerate(histories):
            self._new_upper(str(number))
            with self.mounted(KernelMount) as root:
                for op in history:
                    op.run(root)
            self.lowers.insert(0, self.upper)
        self._new_upper("")

    def _new_upper(self, number: str) -> None:
        self.upper, self.work = self.base / f"upper{number}", self.base / f"work{number}"
        self.upper.mkdir()
        self.work.mkdir()

    @contextmanager
    def mounted(self, kind: type[Mount] | None = None) -> Iterator[Path]:
        mount = (kind or self.kind)(self.point)
        mount.start(Layers(self.lowers, self.upper, self.work), ["index=on", *(self.options if kind is None else [])])
        try:
            yield self.point
        except BaseException:
            mount.abandon()
            raise
        mount.stop()


@contextmanager
def two_sides(memory: Path, contents: list[list[Thing]], histories: list[list[Op]]) -> Iterator[tuple[Side, Side]]:
    base = leaks.make_scratch(memory)
    try:
        yield (
            Side(base / "pyunion", PyunionMount, contents, histories),
            Side(base / "kernel", KernelMount, contents, histories),
        )
    finally:
        leaks.remove_scratch(base)


def view(root: Path) -> Snapshot:
    """Without times: the two sides run one after the other."""
    return snapshot(root, times=False)


def upper(side: Side) -> Snapshot:
    return snapshot(side.upper, times=False, origin_marks=False)


def without_links(history: list[Op]) -> list[Op]:
    """A request to open says which file, not by which of its names; so when a lower file with two names is copied
    up, upper need not get the name that the kernel's overlayfs gives it. test_swapping has such files.
    """
    return [op for op in history if op.name != "link"]


@given(
    contents=st.lists(branches, max_size=2),
    histories=st.lists(operations.map(without_links), max_size=2),
    sequence=operations,
)
def test_the_same_operations_have_the_same_results(
    memory: Path, contents: list[list[Thing]], histories: list[list[Op]], sequence: list[Op]
) -> None:
    with two_sides(memory, contents, histories) as (ours, kernel):
        lowers = [snapshot(lower) for lower in ours.lowers]
        with ours.mounted() as our_root, kernel.mounted() as kernel_root:
            assert_same(view(our_root), view(kernel_root), "before any change (pyunion | kernel)")
            refused = [step(number, op, our_root, kernel_root) for number, op in enumerate(sequence)]
            final = view(our_root)
        compare_branches(ours, kernel, lowers, final, traces=any(refused))


SEEDS = int(os.environ.get("PYUNION_SEEDS", "6"))


@pytest.mark.parametrize(
    ("seed", "option"),
    [
        *((seed, "passthrough=auto") for seed in range(SEEDS)),
        *((seed, "passthrough=all") for seed in range(SEEDS // 3)),
        *((seed, "passthrough=off") for seed in range(SEEDS // 6)),
    ],
)
def test_a_long_walk(memory: Path, seed: int, option: str) -> None:
    """Operations that are chosen by what exists, so that most succeed, with a remount now and then."""
    random = Random(seed)
    with two_sides(memory, [[]], []) as (ours, kernel):
        ours.options.append(option)
        lowers = [snapshot(lower) for lower in ours.lowers]
        for leg in range(4):
            with ours.mounted() as our_root, kernel.mounted() as kernel_root:
                assert_same(view(our_root), view(kernel_root), f"at the start of leg {leg} (pyunion | kernel)")
                for number in range(60):
                    step(number, likely(random, tree(kernel_root)), our_root, kernel_root)
                final = view(our_root)
            compare_branches(ours, kernel, lowers, final, traces=True)


def step(number: int, op: Op, our_root: Path, kernel_root: Path) -> bool:
    """Do the same on both and compare; whether it was an operation on two paths that was refused."""
    result, expected = op.run(our_root), op.run(kernel_root)
    assert result == expected, f"step {number}, {op}: pyunion {result}, kernel {expected}"
    assert_same(view(our_root), view(kernel_root), f"after step {number}, {op} (pyunion | kernel)")
    return len(op.paths) == 2 and expected is not None


def compare_branches(ours: Side, kernel: Side, lowers: list[Snapshot], final: Snapshot, *, traces: bool) -> None:
    """What is on disk: the lower branches as before, equal upper branches, each read alike by the other.

    With `traces`, the kernel's upper may hold those of refused operations.
    """
    for lower, before in zip(ours.lowers, lowers, strict=True):
        assert_same(before, snapshot(lower), f"{lower.name} (before | after)")
    our_upper, kernel_upper = upper(ours), upper(kernel)
    if traces:
        kernel_upper = without_traces(kernel_upper, our_upper)
    assert_same(our_upper, kernel_upper, "the upper branches (pyunion | kernel)")
    with ours.mounted(KernelMount) as root:
        assert_same(final, view(root), "pyunion's upper (by pyunion | by the kernel)")
    with kernel.mounted(PyunionMount) as root:
        assert_same(final, view(root), "the kernel's upper (by the kernel | by pyunion)")


def without_traces(kernel: Snapshot, ours: Snapshot) -> Snapshot:
    """The kernel's upper less what it put there for operations that it then refused.

    It copies up and sets marks before it finds out that a rename cannot be; pyunion looks first. That nothing
    of meaning is left out here is seen when each mounts the other's upper.
    """
    kept = {}
    for path, entry in kernel.items():
        if path in ours:
            our_keys = dict(ours[path].xattrs)
            kept_xattrs = tuple(item for item in entry.xattrs if item[0] in our_keys or item[0] not in TELLING_MARKS)
            kept[path] = entry._replace(xattrs=kept_xattrs)
        elif is_whiteout(entry):
            kept[path] = entry
    return kept


def is_whiteout(entry: Entry) -> bool:
    return entry.kind == "character device" and entry.rdev == 0
