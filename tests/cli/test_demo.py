"""`pyunion demo`: its story comes true, and it clears everything away."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyunion.errors import ExitCode
from tests.cli.command import pyunion


@pytest.mark.usefixtures("_can_mount")
def test_the_story(scratch: Path) -> None:
    done = pyunion("demo", TMPDIR=str(scratch))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "$ pyunion mount --lower site:tools:base --upper upper --work work merged\n" in done.stdout
    assert "The three lower branches are as they were.\n" in done.stdout
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.stdout.splitlines() if "│" in line]
    assert ["bin/make", "", "(whiteout)", "", "make 4.4", ""] in rows
    assert ["help/faq", "42", "", "", "", ""] in rows
    assert "\x1b" not in done.stdout, "no colours where there is no terminal"
    assert os.listdir(scratch) == []


@pytest.mark.usefixtures("_can_mount")
def test_keep(scratch: Path) -> None:
    done = pyunion("demo", "--keep", TMPDIR=str(scratch))
    assert done.returncode == 0, done.stdout + done.stderr
    [home] = scratch.iterdir()
    assert f"pyunion umount {home}/merged && rm -r {home}\n" in done.stdout
    assert (home / "merged/bin/hi").read_text() == "hi 2.0\n"
    assert pyunion("umount", home / "merged").returncode == 0


def test_failure_is_told(scratch: Path) -> None:
    done = pyunion("demo", before="mount -t tmpfs none /dev; mknod /dev/null c 1 3", TMPDIR=str(scratch))
    assert done.returncode == ExitCode.MOUNT
    assert "/dev/fuse does not exist" in done.stderr
    assert os.listdir(scratch) == []
