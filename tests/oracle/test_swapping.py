"""Swapping: one set of branches, changed by pyunion and by the kernel in turns; each goes on where the other stopped.

After each turn both mount the branches, and must show the same tree with the same inode numbers and link counts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import TypeVar

import pytest

from tests.harness.files import run, tree
from tests.harness.mounts import KernelMount, Layers, Mount, PyunionMount, unmount
from tests.harness.snapshot import Snapshot, assert_same, snapshot
from tests.oracle.model import Thing, likely
from tests.oracle.test_sequences import Side, memory

__all__ = ["memory"]

FEATURES = {
    "all on": ["index=on", "metacopy=on", "redirect_dir=on"],
    "index off": ["index=off", "metacopy=on", "redirect_dir=on"],
    "metacopy off": ["index=on", "metacopy=off", "redirect_dir=on"],
    "redirects off": ["index=on", "metacopy=off", "redirect_dir=off"],
}
SEEDS = int(os.environ.get("PYUNION_SEEDS", "2"))
TURNS = 4
STEPS = 40
FIRST = pytest.mark.parametrize("first", [PyunionMount, KernelMount], ids=["pyunion first", "kernel first"])

Numbers = dict[str, tuple[int, int]]
T = TypeVar("T")


class Table:
    """The branches on the table, and the two players."""

    def __init__(self, base: Path, features: list[str], contents: list[list[Thing]]) -> None:
        self.side = Side(base, PyunionMount, contents, [])
        self.features = features
        bottom = self.side.lowers[-1]
        for name, other in (("a/a/a", "b/e"), ("b/b", "a/e"), ("b/b", "b/f")):
            os.link(bottom / name, bottom / other)

    def mounted(self, kind: type[Mount], action: Callable[[Path], T]) -> T:
        mount = kind(self.side.point)
        mount.start(Layers(self.side.lowers, self.side.upper, self.side.work), self.features)
        try:
            result = action(self.side.point)
        except BaseException:
            mount.abandon()
            raise
        mount.stop()
        return result

    def play(self, first: type[Mount], seed: int) -> Iterator[str]:
        """Let both have their turns; after each it is said whose it was."""
        lowers = [snapshot(lower) for lower in self.side.lowers]
        random = Random(seed)
        players = [first, KernelMount if first is PyunionMount else PyunionMount]

        def steps(root: Path) -> None:
            for _ in range(STEPS):
                likely(random, tree(root)).run(root)

        for turn in range(TURNS):
            self.mounted(players[turn % 2], steps)
            yield f"after turn {turn} of {players[turn % 2].kind}"
        for lower, before in zip(self.side.lowers, lowers, strict=True):
            assert_same(before, snapshot(lower), f"{lower.name} (before | after)")

    def compare(self, when: str) -> tuple[Numbers, Numbers]:
        """Both show the same tree; returns the inode numbers and link counts of pyunion and of the kernel."""
        ours, our_numbers = self.mounted(PyunionMount, look)
        kernels, kernel_numbers = self.mounted(KernelMount, look)
        assert_same(ours, kernels, f"{when} (pyunion | kernel)")
        return our_numbers, kernel_numbers


def look(root: Path) -> tuple[Snapshot, Numbers]:
    return snapshot(root, times=False), inodes(root, [*tree(root), "./"])


def inodes(root: Path, paths: Sequence[str]) -> Numbers:
    """Numbers and, but for directories, link counts."""
    found = {path: (root / path).lstat() for path in paths}
    return {path: (st.st_ino, 0 if path.endswith("/") else st.st_nlink) for path, st in found.items()}


@FIRST
@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES.keys())
@pytest.mark.parametrize("seed", range(SEEDS))
def test_turns(memory: Path, first: type[Mount], features: list[str], seed: int, tmp_path: Path) -> None:
    base = memory / tmp_path.name
    base.mkdir()
    table = Table(base, features, [[]])
    for when in table.play(first, seed):
        ours, kernels = table.compare(when)
        assert ours == kernels, f"{when}: inode numbers (pyunion, kernel)"


# -- branches on several devices ------------------------------------------------------------------------------------

# Of three branches the first and the last get a file system of their own; the second is on upper's.
OWN_FILE_SYSTEM = ("lower0", "lower2")
CONTENTS = [
    [Thing("file", "a/a/c"), Thing("file", "b/b"), Thing("symlink", "a/s"), Thing("opaque", "b/a/b")],
    [Thing("file", "a/a/b"), Thing("file", "b/a/c"), Thing("fifo", "a/b/p"), Thing("directory", "c")],
]


@pytest.fixture
def devices(memory: Path, tmp_path: Path) -> Iterator[Path]:
    """A directory for a Table, with ext4 (from an image) where some of its branches will be."""
    base = memory / tmp_path.name
    points = [base / name for name in OWN_FILE_SYSTEM]
    for point in points:
        point.mkdir(parents=True)
        image = base / f"{point.name}.ext4"
        with image.open("wb") as file:
            file.truncate(8 << 20)
        run("mkfs.ext4", "-q", "-I", "256", image)
        run("mount", "-o", "loop", image, point)
        (point / "lost+found").rmdir()
    yield base
    for point in points:
        unmount(point)


@FIRST
@pytest.mark.parametrize("xino", ["xino=on", "xino=off"])
@pytest.mark.parametrize("seed", range((SEEDS + 1) // 2))
def test_turns_over_several_devices(devices: Path, first: type[Mount], xino: str, seed: int) -> None:
    """Overlayfs promises numbers that persist with xino only, pyunion always: however the objects are met."""
    table = Table(devices, [*FEATURES["all on"], xino], CONTENTS)
    for when in table.play(first, seed):
        ours, kernels = table.compare(when)
        if xino == "xino=on":
            assert ours == kernels, f"{when}: inode numbers (pyunion, kernel)"
        backwards = [*reversed(ours)]
        again = table.mounted(PyunionMount, lambda root, paths=backwards: inodes(root, paths))  # type: ignore[misc]
        assert again == ours, f"{when}: inode numbers (looked up in the other order, before)"
        without_links = [number for number, count in ours.values() if count < 2]
        assert len(without_links) == len(set(without_links)), f"{when}: an inode number twice"
