"""A snapshot is taken again and again until nothing has changed, and each look takes time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyunion.branch.dirs import Branch, DirCache
from pyunion.layers.snapshot import Snapshot

TICK_NS = 20_000_000  # within which two changes may have one time
NAMES = ("a", "b", "c", "d")


def _branch(path: Path) -> Branch:
    return Branch(0, bytes(path), os.open(path, os.O_RDONLY | os.O_DIRECTORY), DirCache(100), is_upper=True)


@pytest.mark.parametrize("late", range(2 * len(NAMES)))
def test_links_that_were_just_made_stay_links(scratch: Path, monkeypatch: pytest.MonkeyPatch, late: int) -> None:
    """Wherever in the first look the moment comes from which their change time tells of any other change."""
    for name in ("upper", "copy"):
        (scratch / name).mkdir()
    (scratch / "upper" / NAMES[0]).write_text("text")
    for name in NAMES[1:]:
        os.link(scratch / "upper" / NAMES[0], scratch / "upper" / name)
    changed_ns = (scratch / "upper" / NAMES[0]).stat().st_ctime_ns
    asked = 0

    def clock() -> int:
        nonlocal asked
        asked += 1
        return changed_ns + (2 * TICK_NS if asked > late else 0)

    monkeypatch.setattr("pyunion.layers.snapshot.time.time_ns", clock)
    upper, copy = _branch(scratch / "upper"), _branch(scratch / "copy")
    try:
        Snapshot(upper, copy).take()
    finally:
        upper.close()
        copy.close()
    copies = [(scratch / "copy" / name).stat() for name in NAMES]
    assert len({st.st_ino for st in copies}) == 1
    assert copies[0].st_nlink == len(NAMES)
