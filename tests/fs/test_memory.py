"""When the C library is asked to give memory back. How much that is, `scripts/bench --growth` says."""

from __future__ import annotations

from itertools import pairwise

import pytest

from pyunion.branch import syscalls
from pyunion.fs.memory import Memory

ALL = 100_000


@pytest.mark.parametrize(
    ("counts", "times"),
    [
        ([ALL, ALL - 1], 0),
        ([ALL, 10], 1),
        ([ALL, 50_000, 30_000, 20_000, 10_000, 10], 2),
        ([100, 1], 0),
        ([ALL, 1, 100, 1, ALL, 1], 2),
    ],
    ids=["a little is forgotten", "all at once", "all, step by step", "few nodes", "again"],
)
def test_memory_is_given_back_when_most_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, counts: list[int], times: int
) -> None:
    asked = []
    monkeypatch.setattr(syscalls, "trim_memory", lambda: asked.append(True))
    memory = Memory()
    for before, left in pairwise(counts):
        if left < before:
            memory.forgotten(before, left)
    assert len(asked) == times


def test_the_system_has_such_a_call() -> None:
    syscalls.trim_memory()
