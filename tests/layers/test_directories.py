"""New directories that commands make: what they hold comes from the layers and from nothing else.

Not from the directory in which they are made, and not from the hands of who makes them: a user's are filled though
their modes would keep him out.
"""

from __future__ import annotations

import os
import shlex
import tarfile
from pathlib import Path

import pytest

from tests.harness.files import as_user, run, write
from tests.harness.program import copy_program
from tests.harness.snapshot import Snapshot, assert_same, snapshot
from tests.harness.warm import pyunion as command
from tests.layers import handmade

_MODES = {"closed": 0o555, "closed/sub": 0o500, "closed/sub/deep": 0o750, "setgid": 0o2755, "open": 0o777}


def _sources(at: Path) -> tuple[Path, Path]:
    """A branch and an image with the same in it."""

    def fill(archive: tarfile.TarFile) -> None:
        for name, mode in _MODES.items():
            handmade.add(archive, name, type=tarfile.DIRTYPE, mode=mode)
            handmade.add(archive, f"{name}/file", b"data", mode=0o640)

    image = handmade.layout(at / "image", [handmade.layer(fill)])
    for name in _MODES:
        write(at / "branch" / name / "file", "data", 0o640)
        os.utime(at / "branch" / name / "file", (1_600_000_000, 1_600_000_000))
    for name, mode in _MODES.items():
        (at / "branch" / name).chmod(mode)
    for name in _MODES:
        os.utime(at / "branch" / name, (1_600_000_000, 1_600_000_000))
    return at / "branch", image


def _without_root(tree: Path) -> Snapshot:
    found = snapshot(tree)
    del found[b"."]
    return found


_WAYS = ("flatten", "squash", "commit", "import")


def _words(way: str, branch: Path, image: Path, to: Path) -> tuple[list[str], Path]:
    """The command, and where its result will be."""
    if way == "import":
        return ["import", str(image), str(to)], to / "layers"
    if way == "commit":
        return ["commit", str(branch), str(to)], to
    return [way, "--lower", str(branch), str(to)], to


def _result(way: str, at: Path) -> Path:
    return next(at.iterdir()) if way == "import" else at


@pytest.mark.parametrize("way", _WAYS)
def test_nothing_is_inherited_from_where_it_is_made(scratch: Path, way: str) -> None:
    branch, image = _sources(scratch)
    place = scratch / "place"
    place.mkdir()
    run("setfacl", "--default", "--modify", "user:1234:rwx,group:1234:rwx", place)
    os.chown(place, 0, 1234)
    place.chmod(0o2777)
    words, at = _words(way, branch, image, place / "new")
    done = command(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert_same(_without_root(branch), _without_root(_result(way, at)), "it has something of its place")


@pytest.mark.parametrize("way", _WAYS)
def test_a_user_fills_directories_that_nobody_may_write_to(scratch: Path, way: str) -> None:
    branch, image = _sources(scratch)
    run("chown", "-R", "1000:1000", branch)
    program = copy_program(scratch / "program")
    home = scratch / "home"
    home.mkdir()
    os.chown(home, 1000, 1000)
    words, at = _words(way, branch, image, home / "new")
    script = f'cd / && PYTHONPATH={shlex.quote(str(scratch / "program"))} exec {program} "$@"'
    as_user("sh", "-c", script, "sh", *words)
    assert_same(_without_root(branch), _without_root(_result(way, at)), "a user's is another one")
    if way != "import":
        return
    again = handmade.layout(scratch / "bad", [handmade.members("a"), b"no archive"])  # what was made is removed
    as_user("sh", "-c", script, "sh", "import", str(again), str(home / "new"), "--name", "bad", check=False)
    assert len(list(at.iterdir())) == 1
