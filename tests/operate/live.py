"""Shorthands for changing a union that is mounted."""

from __future__ import annotations

import os
import random
from pathlib import Path

from tests.harness.files import make_opaque, make_whiteout, outcome, write
from tests.harness.mounts import PATIENCE
from tests.harness.ready import until
from tests.harness.union import Union
from tests.harness.warm import pyunion as run_pyunion

NAMES = ("a", "b", "c")


def change(union: Union, *words: str | Path) -> None:
    """`pyunion branch`, which has to go well; union.restacked() is to be told."""
    action, *rest = words
    done = run_pyunion("branch", action, union.at, *rest)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def refused(union: Union, *words: str | Path) -> tuple[int, str]:
    """The exit status and the sentence of `pyunion branch`."""
    action, *rest = words
    done = run_pyunion("branch", action, union.at, *rest)
    assert done.returncode
    assert done.stdout == ""
    return done.returncode, done.stderr.removeprefix("pyunion: ").removesuffix("\n")


def refresh(union: Union) -> None:
    done = run_pyunion("refresh", union.at)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def numbers(top: Path) -> dict[str, int]:
    """The inode numbers of all below a directory."""
    found = {}
    for here, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = Path(here) / name
            found[str(path.relative_to(top))] = path.lstat().st_ino
    return found


def walk(top: Path) -> None:
    """Let the kernel know all names, and some that are not there."""
    for here, directories, files in os.walk(top):
        for name in (*directories, *files):
            (Path(here) / name).lstat()
        for name in ("appears", "hidden", "nowhere"):
            outcome((Path(here) / name).stat)


def grow(where: Path, random_: random.Random, depth: int = 0) -> None:
    """A small tree with something of each kind that matters to merging."""
    where.mkdir(exist_ok=True)
    for name in NAMES:
        match random_.choice(["file", "dir", "dir", "opaque", "whiteout", "symlink", "nothing", "nothing"]):
            case "file":
                write(where / name, f"{where}/{name}")
            case "dir" | "opaque" as kind if depth < 3:
                grow(where / name, random_, depth + 1)
                if kind == "opaque":
                    make_opaque(where / name)
            case "whiteout":
                make_whiteout(where / name)
            case "symlink":
                (where / name).symlink_to(f"{where.name}-{random_.random()}")


def held(union: Union, branch: Path) -> int:
    """How many descriptors the daemon has on the file system of a branch."""
    device = branch.stat().st_dev
    folder = Path(f"/proc/{union.daemon.pid}/fd")
    return [fd.stat().st_dev for fd in folder.iterdir() if fd.exists()].count(device)


def await_free(union: Union, branch: Path) -> None:
    """Until the daemon has none: the kernel tells it of a closed file a moment later, and nobody else."""
    until(lambda: not held(union, branch), f"{branch} is still in use", PATIENCE)
