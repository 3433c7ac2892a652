"""Listings while entries come and go: each name once, and positions that stay good."""

from __future__ import annotations

import ctypes
import os
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from tests.harness.files import write
from tests.harness.union import Union


class Stream:
    """opendir(3), readdir(3), telldir(3) and seekdir(3)."""

    _libc = ctypes.CDLL(None, use_errno=True)
    _libc.opendir.restype = ctypes.c_void_p
    _libc.readdir.restype = ctypes.c_void_p
    _libc.telldir.restype = ctypes.c_long
    _NAME = 19  # where d_name is in struct dirent

    def __init__(self, path: Path) -> None:
        self._stream = ctypes.c_void_p(self._libc.opendir(os.fsencode(path)))

    def read(self, most: int = -1) -> list[str]:
        """The next names, `most` of them or all; without the two that every directory has."""
        names: list[str] = []
        while len(names) != most and (entry := self._libc.readdir(self._stream)):
            name = os.fsdecode(ctypes.string_at(entry + self._NAME))
            names += [] if name in (".", "..") else [name]
        return names

    def tell(self) -> int:
        return int(self._libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        self._libc.seekdir(self._stream, ctypes.c_long(position))

    def close(self) -> None:
        self._libc.closedir(self._stream)


def test_a_listing_stays_whole_while_entries_come_and_go(union: Union) -> None:
    names = {f"file-with-a-rather-long-name-{number:05}" for number in range(3000)}
    for number, name in enumerate(sorted(names)):
        write((union.low, union.low2)[number % 2] / "d" / name)
    union.mount()
    enough = union.base / "enough"
    script = 'until [ -e "$1" ]; do : > "$0/tmp"; ls "$0" >/dev/null; rm "$0/tmp"; done'
    churn = subprocess.Popen(["sh", "-c", script, union.at / "d", enough])
    try:
        for _ in range(5):
            listed = [entry.name for entry in os.scandir(union.at / "d")]
            assert len(listed) == len(set(listed))
            assert set(listed) - {"tmp"} == names
    finally:
        enough.touch()  # it ends by itself: a signal would leave the command that it runs just now
        churn.wait(60)


@pytest.mark.parametrize("seen", [1, 150, 299])
def test_a_position_stays_good_while_entries_before_and_after_it_come_and_go(pyunion: Union, seen: int) -> None:
    for number in range(300):
        write((pyunion.low, pyunion.low2, pyunion.top)[number % 3] / f"d/{number}")
    pyunion.mount()
    with closing(Stream(pyunion.at / "d")) as stream:
        before = stream.read(seen)
        here = stream.tell()
        after = stream.read()
        assert sorted(before + after, key=int) == [str(number) for number in range(300)]
        gone = set(before[::2] + after[::3])
        for name in gone:
            (pyunion.at / "d" / name).unlink()
        new = {write(pyunion.at / f"d/new{number}").name for number in range(50)}
        stream.seek(here)
        again = stream.read()
        assert len(again) == len(set(again))
        # what has gone or come since the stream was opened may be in it or not, as POSIX says of readdir
        assert [name for name in again if name not in gone | new] == [name for name in after if name not in gone]
