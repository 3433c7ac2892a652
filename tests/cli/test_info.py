"""`pyunion info`: true facts about the machine and branches, and no traces on a branch that is only looked at."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import pytest

from pyunion.errors import ExitCode
from tests.cli.command import pyunion


def _facts(*arguments: str | Path, before: str = "") -> tuple[dict[str, Any], list[dict[str, Any]]]:
    done = pyunion("info", "--json", *arguments, before=before)
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    return read["host"], read["branches"]


def test_the_machine() -> None:
    host, branches = _facts()
    assert host["kernel"] == platform.release()
    assert host["pyfuse3"][0].isdigit()
    assert host["libfuse"].startswith("3.")
    assert host["/dev/fuse"] is True
    assert branches == []


def test_a_machine_without_fuse() -> None:
    host, _ = _facts(before="mount -t tmpfs none /dev")
    assert host["/dev/fuse"].startswith("/dev/fuse does not exist; run `modprobe fuse`")


def test_a_look_writes_nothing(here: Path) -> None:
    before = (here / "lower").stat()
    _, [branch] = _facts(here / "lower")
    assert (here / "lower").stat().st_mtime_ns == before.st_mtime_ns
    assert branch["d_type"] is True
    assert branch["device"] == f"{os.major(before.st_dev)}:{os.minor(before.st_dev)}"
    assert branch["as upper branch"].startswith("not probed")


def test_probing_leaves_nothing(here: Path) -> None:
    _, [branch] = _facts(here / "lower", "--probe", before=f"mount -t tmpfs none {here}/lower")
    assert branch["file system"] == "tmpfs (none)"
    assert branch["marks"] == "trusted.overlay.*"
    assert branch["whiteouts"] == "character device 0:0"
    assert branch["exchange of names"] is True
    assert branch["reflink"] is False
    assert any(reason.startswith("files cannot share blocks") for reason in branch["why not"])
    _facts(here / "lower", "--probe")
    assert os.listdir(here / "lower") == []


def test_read_only_branches(here: Path) -> None:
    _, [branch] = _facts(here / "lower", "--probe", before=f"mount -t tmpfs -o ro none {here}/lower")
    assert branch["read-only"] is True
    assert branch["as upper branch"] == "no: nothing can be created in it (Read-only file system)"


def test_which_branches_share_a_device(here: Path) -> None:
    names = ("lower", "upper", "work")
    _, branches = _facts(*(here / name for name in names), before=f"mount -t tmpfs none {here}/upper")
    assert [branch["same device as"] for branch in branches] == [[f"{here}/work"], [], [f"{here}/lower"]]


def test_text_is_aligned(here: Path) -> None:
    done = pyunion("info", here / "lower")
    lines = done.stdout.splitlines()
    own = lines[lines.index("branch 1") + 1 :]
    column = own[0].index(str(here))
    assert all(line[column - 1] == " " and line[column] != " " for line in own)


@pytest.mark.parametrize(("name", "why"), [("nope", "No such file"), ("file", "Not a directory")])
def test_what_is_no_branch(here: Path, name: str, why: str) -> None:
    done = pyunion("info", here / name)
    assert done.returncode == ExitCode.BRANCH
    assert done.stderr.startswith(f"pyunion: cannot open the branch {here}/{name}: {why}")
