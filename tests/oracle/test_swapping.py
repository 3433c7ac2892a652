"""Swapping: one set of branches, changed by pyunion and by the kernel in turns; each goes on where the other stopped.

After each turn both mount the branches, and must show the same tree with the same inode numbers and link counts.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest

from tests.harness.files import tree
from tests.harness.mounts import KernelMount, Layers, Mount, PyunionMount
from tests.harness.snapshot import assert_same, snapshot
from tests.oracle.model import likely
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


class Table:
    """The branches on the table, and the two players."""

    def __init__(self, base: Path, features: list[str]) -> None:
        self.side = Side(base, PyunionMount, [[]], [])
        self.features = features
        bottom = self.side.lowers[-1]
        for name, other in (("a/a/a", "b/e"), ("b/b", "a/e"), ("b/b", "b/f")):
            os.link(bottom / name, bottom / other)

    def mount(self, kind: type[Mount]) -> Mount:
        mount = kind(self.side.point)
        mount.start(Layers(self.side.lowers, self.side.upper, self.side.work), self.features)
        return mount

    def play(self, kind: type[Mount], random: Random) -> None:
        mount = self.mount(kind)
        try:
            for _ in range(STEPS):
                likely(random, tree(self.side.point)).run(self.side.point)
        except BaseException:
            mount.abandon()
            raise
        mount.stop()

    def compare(self, when: str) -> None:
        views, numbers = [], []
        for kind in (PyunionMount, KernelMount):
            mount = self.mount(kind)
            try:
                views.append(snapshot(self.side.point, times=False))
                numbers.append(inodes(self.side.point))
            except BaseException:
                mount.abandon()
                raise
            mount.stop()
        assert_same(views[0], views[1], f"{when} (pyunion | kernel)")
        assert numbers[0] == numbers[1], f"{when}: inode numbers (pyunion, kernel)"


def inodes(root: Path) -> dict[str, tuple[int, int]]:
    """Numbers and, but for directories, link counts."""
    found = {path: (root / path).lstat() for path in tree(root)}
    return {path: (st.st_ino, 0 if path.endswith("/") else st.st_nlink) for path, st in found.items()}


@pytest.mark.parametrize("first", [PyunionMount, KernelMount], ids=["pyunion first", "kernel first"])
@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES.keys())
@pytest.mark.parametrize("seed", range(SEEDS))
def test_turns(memory: Path, first: type[Mount], features: list[str], seed: int, tmp_path: Path) -> None:
    base = memory / tmp_path.name
    base.mkdir()
    table = Table(base, features)
    lowers = [snapshot(lower) for lower in table.side.lowers]
    random = Random(seed)
    players = [first, KernelMount if first is PyunionMount else PyunionMount]
    for turn in range(TURNS):
        player = players[turn % 2]
        table.play(player, random)
        table.compare(f"after turn {turn} of {player.kind}")
    for lower, before in zip(table.side.lowers, lowers, strict=True):
        assert_same(before, snapshot(lower), f"{lower.name} (before | after)")
