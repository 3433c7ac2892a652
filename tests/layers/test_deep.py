"""The commands on layers go through trees that are deeper than there are descriptors, and than PATH_MAX."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG

import pytest

from tests.cli.command import pyunion as command
from tests.harness.files import run

DEPTH = 1_500
DESCRIPTORS = 1_024
_NAME = b"dir"


@pytest.fixture
def deep(scratch: Path, _can_mount: None) -> Iterator[Path]:
    """`lower` with a file at the bottom that `upper` has changed, and one that it has removed."""
    for name, text in (("lower", b"below"), ("upper", b"above")):
        (scratch / name).mkdir()
        bottom = _bottom(scratch / name, make=True)
        _write(bottom, b"leaf", text)
        if name == "lower":
            _write(bottom, b"gone", text)
        else:
            os.mknod(b"gone", 0o20000, 0, dir_fd=bottom)
        os.close(bottom)
    (scratch / "work").mkdir()
    yield scratch
    run("rm", "-rf", *scratch.iterdir())  # shutil's walk is recursive


def _bottom(top: Path, make: bool = False) -> int:
    fd = os.open(top, os.O_RDONLY)
    for _ in range(DEPTH):
        if make:
            os.mkdir(_NAME, dir_fd=fd)
        below = os.open(_NAME, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    return fd


def _write(directory: int, name: bytes, text: bytes) -> None:
    with open(os.open(name, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=directory), "wb") as file:
        file.write(text)


def _held(top: Path) -> dict[str, bytes | None]:
    """The names at the bottom with what the files hold, None for a whiteout."""
    fd = _bottom(top)
    try:
        found: dict[str, bytes | None] = {}
        for name in os.listdir(fd):
            found[name] = None
            if S_ISREG(os.stat(name, dir_fd=fd).st_mode):
                with open(os.open(name, os.O_RDONLY, dir_fd=fd), "rb") as file:
                    found[name] = file.read()
        return found
    finally:
        os.close(fd)


@contextmanager
def _few_descriptors() -> Iterator[None]:
    """For the commands that are started here."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def _run(*arguments: str | Path) -> str:
    with _few_descriptors():
        done = command(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_diff(deep: Path) -> None:
    bottom = "/dir" * DEPTH
    said = _run("diff", "--upper", deep / "upper", "--lower", deep / "lower").splitlines()
    assert said[0] == "C /dir"
    assert said[-2:] == [f"D {bottom}/gone", f"C {bottom}/leaf"]
    assert len(said) == DEPTH + 2
    alone = _run("diff", "--upper", deep / "upper").splitlines()
    assert alone[-2:] == [f"D {bottom}/gone", f"A {bottom}/leaf"]


def test_check(deep: Path) -> None:
    assert _run("check", "--upper", deep / "upper", "--work", deep / "work", "--lower", deep / "lower") == ""
    bottom = _bottom(deep / "upper")
    os.mknod(b"hides nothing", 0o20000, 0, dir_fd=bottom)
    os.close(bottom)
    with _few_descriptors():
        done = command(
            "check", "--repair", "--upper", deep / "upper", "--work", deep / "work", "--lower", deep / "lower"
        )
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (9, "", 1)
    assert done.stdout.endswith("this whiteout hides nothing, as no lower branch has anything there: removed\n")
    assert _held(deep / "upper") == {"leaf": b"above", "gone": None}


def test_commit(deep: Path) -> None:
    _run("commit", deep / "upper", deep / "layer")
    assert _held(deep / "layer") == {"leaf": b"above", "gone": None}


def test_flatten_and_squash(deep: Path) -> None:
    _run("flatten", "--upper", deep / "upper", "--lower", deep / "lower", deep / "flat")
    assert _held(deep / "flat") == {"leaf": b"above"}
    _run("squash", "--upper", deep / "upper", "--below", deep / "lower", deep / "one")
    assert _held(deep / "one") == {"leaf": b"above", "gone": None}


def test_an_image_comes_and_goes(deep: Path) -> None:
    _run("commit", deep / "upper", "--oci-layout", deep / "image")
    layer = _run("import", deep / "image", deep / "store").strip()
    assert _held(Path(layer)) == {"leaf": b"above"}  # a whiteout in the lowest layer hides nothing
    _run("export", deep / "store", deep / "archive.tar")
    again = _run("import", deep / "archive.tar", deep / "second").strip()
    assert _held(Path(again)) == {"leaf": b"above"}
