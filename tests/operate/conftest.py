"""Shorthands for asking a running mount, and file systems that behave as a test needs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyunion import mountinfo
from pyunion.control.client import Connection
from tests.harness.files import make_opaque, make_whiteout, write
from tests.harness.mounts import PATIENCE
from tests.harness.union import Union
from tests.harness.warm import pyunion as run_pyunion

SLOW = Path(__file__).with_name("slow_file_system.py")


def told(*arguments: str | Path, status: int = 0) -> Any:
    """What a command says with --json."""
    done = run_pyunion(*arguments, "--json")
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout)


def connection_to(union: Union) -> Connection:
    mount = mountinfo.topmost_at(os.fsencode(union.at))
    assert mount is not None
    return Connection(mount)


@pytest.fixture
def tmpfs(scratch: Path, _can_mount: None) -> Iterator[Path]:
    """A small file system that nobody else uses. Name it before `pyunion`, so that it is unmounted after that."""
    path = scratch / "tmpfs"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


class Slow:
    """A file system with one file, `big`, whose second half cannot be read before proceed()."""

    HALF = 4 << 20

    def __init__(self, at: Path) -> None:
        self.at = at
        at.mkdir()
        self._server = subprocess.Popen(
            [sys.executable, SLOW, at, str(self.HALF)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"mounted\n"

    def proceed(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()

    def stop(self) -> None:
        self.proceed()
        subprocess.run(["umount", self.at], check=True)
        self._server.wait(PATIENCE)
        assert self._server.stdout is not None
        self._server.stdout.close()


@pytest.fixture
def slow(scratch: Path, _can_mount: None) -> Iterator[Slow]:
    """To be named before `pyunion`, as tmpfs."""
    made = Slow(scratch / "slow")
    yield made
    made.stop()


@pytest.fixture
def three(pyunion: Union) -> Union:
    """Branches with names of their own and names in common; a fourth one, `more`, is to be added."""
    for number, branch in enumerate((pyunion.low, pyunion.low2, pyunion.low3), 1):
        write(branch / f"only{number}", f"{number}")
        write(branch / "all", f"all of {number}")
        write(branch / f"dir/only{number}", f"{number}")
        write(branch / "dir/all", f"dir of {number}")
        write(branch / f"deep/er/only{number}", f"{number}")
    write(pyunion.low3 / "hidden", "a file")
    write(pyunion.low3 / "gone", "a file")
    write(pyunion.low3 / "turns/file", "in a directory")
    write(pyunion.low3 / "shut/file", "below")
    more = pyunion.base / "more"
    write(more / "appears", "new")
    write(more / "all", "all of more")
    write(more / "dir/all", "dir of more")
    write(more / "dir/appears", "new")
    write(more / "deep/er/appears", "new")
    write(more / "new/appears", "new")
    write(more / "hidden/file", "a directory now")
    write(more / "turns", "a file now")
    make_whiteout(more / "gone")
    write(pyunion.low3 / "mode/file")
    (more / "mode").mkdir(mode=0o700)
    make_opaque(more / "shut")
    write(more / "shut/appears", "new")
    return pyunion
