"""A small union on a file system in memory, for many short tries; and one with a branch that does not answer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import leaks
from tests.harness.files import run, write
from tests.harness.held import HeldBranch
from tests.harness.union import Union
from tests.reliability.silent import MANY, NEAR, NEEDS_IT, Known, place
from trials.union import Home


@pytest.fixture(scope="module")
def home(_can_mount: None) -> Iterator[Home]:
    path = leaks.make_scratch()
    run("mount", "-t", "tmpfs", "tmpfs", path)
    try:
        yield Home(path)
    finally:
        run("umount", path)
        leaks.remove_scratch(path)


@pytest.fixture(scope="module")
def base(home: Home) -> Path:
    return home.base


@pytest.fixture
def held(scratch: Path, _can_mount: None) -> Iterator[HeldBranch]:
    """To be named before `pyunion`, so that it is unmounted after that."""
    branch = HeldBranch(scratch / "held", scratch / "far")
    for name in NEEDS_IT:
        directory = branch.source / "far" / place(name)
        file = write(directory / "file", "far")
        os.setxattr(file, "user.there", b"yes")
        (directory / "dir").mkdir()
        (directory / "symlink").symlink_to("file")
    for number in range(MANY):
        write(branch.source / f"far/many/{number}", "x" * 100_000)
    yield branch
    branch.stop()


@pytest.fixture(params=["extension", "bare"])
def far(held: HeldBranch, pyunion: Union, request: pytest.FixtureRequest) -> Iterator[Union]:
    """A union of it and another branch."""
    if request.param == "bare":
        request.getfixturevalue("bare")
    for number in range(NEAR):
        write(pyunion.low / f"near/{number}", "near")
    pyunion.mount(lowers=[pyunion.low, held.at])
    (pyunion.at / "mine").mkdir()
    yield pyunion
    held.go()


@pytest.fixture
def known(far: Union) -> Iterator[Known]:
    """The upper parts of the tree, so that no look-up there needs the branch."""
    known = Known(far.at, ("near", "mine", "far", "far/many", *(f"far/{place(name)}" for name in NEEDS_IT)))
    yield known
    known.close()
