"""Ctrl-C at a terminal ends a command by SIGINT, as shells want it: a loop around it ends as well.

It is pressed before many of the command's system calls. The terminal is left as it was, nothing is left half done and
nobody running, and the same command, called again, does its work.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import cache_from_source
from itertools import cycle
from pathlib import Path

import pytest

from pyunion import cli
from pyunion.commands import check, commit, diff, flatten, image_export, image_import, top  # so that no fork has to
from tests.cli.command import clean_environment
from tests.harness.files import tree, write
from tests.harness.mounts import PATIENCE, REPOSITORY, Layers, PyunionMount, mounted
from tests.harness.ready import until
from tests.harness.snapshot import Snapshot, snapshot
from tests.harness.terminal import Job
from tests.harness.warm import pyunion
from trials.union import sample

_PRELOADED = (check, commit, diff, flatten, image_export, image_import, top)
_POINTS = 15

_BRANCHES = "--upper {at}/up --work {at}/work --lower {at}/low"
# The words of each command, and what it makes.
_COMMANDS = {
    "commit": ("commit {at}/up {at}/out/new", "out/new"),
    "commit --oci-layout": ("commit {at}/up --oci-layout {at}/image:new --lower {at}/low", "image/index.json"),
    "import": ("import {at}/image:base {at}/out", "out/images/base.json"),
    "export": ("export {at}/store {at}/out/new.tar --source-date-epoch 1", "out/new.tar"),
    "export to a layout": ("export {at}/store {at}/out/new --source-date-epoch 1", "out/new/index.json"),
    "check": (f"check {_BRANCHES}", ""),
    "check --repair": (f"check --repair {_BRANCHES}", ""),
    "diff": ("diff --upper {at}/up --lower {at}/low", ""),
    "flatten": ("flatten --upper {at}/up --lower {at}/low {at}/out/flat", "out/flat"),
    "top": ("top --once --interval 0.1 {at}/other", ""),
    "mount": (f"mount {_BRANCHES} {{at}}/union", ""),
}
# What may stay of an interrupted one: an image layout or store with nothing half done in it, blobs that are whole, what
# flatten goes on with, and what a mount begins with.
_MAY_STAY = ("image/blobs/sha256/", "out/new/", "out/layers/", "out/images/", "out/.pyunion-half-", "work/", "up/")
_NEVER = (".pyunion-new-", ".new-", ".json.new")
_each_command = pytest.mark.parametrize("command", _COMMANDS)


@pytest.fixture
def home(scratch: Path, _can_mount: None) -> Iterator[Path]:
    """With the branches low and up, an image layout and a store."""
    for name in ("low", "up", "work", "union", "other", "out"):
        (scratch / name).mkdir()
    for number in range(8):
        write(scratch / f"low/d{number % 2}/f{number}", "low" * number)
        write(scratch / f"up/d{number % 2}/g{number}", "up" * number)
    for words in (
        f"commit {scratch}/low --oci-layout {scratch}/image:base",
        f"commit {scratch}/up --oci-layout {scratch}/image:base --lower {scratch}/low",
        f"import {scratch}/image:base {scratch}/store",
    ):
        done = pyunion(*words.split())
        assert (done.returncode, done.stderr) == (0, "")
    other = PyunionMount(scratch / "other")
    other.start(Layers([scratch / "low"]))
    yield scratch
    other.stop()


class _Try:
    """One interrupted run of a command, and what has come of it."""

    def __init__(self, home: Path, words: list[str], made: str, at: list[int]) -> None:
        self._home, self._words, self._made = home, words, made
        self._before = _names(home)
        self.job = Job(words, at)
        self.status, self.said = self.job.await_end()

    def end(self) -> None:
        """Nothing that was started goes on, and nothing is left. Who presses Ctrl-C twice does not wait for that."""
        if self.status == 0 and self._words[0] == "mount":
            self._unmount()
        assert self.job.all_have_ended(), self.said
        assert not _is_mounted(self._home)
        assert [name for name in _names(self._home) if self._is_left(name)] == [], self.said

    def _is_left(self, name: str) -> bool:
        if any(part in name for part in _NEVER):
            return True
        return name not in self._before and not name.startswith((*_MAY_STAY, self._made or "/"))

    def calls_of_all(self) -> list[str]:
        """Those of a run that nobody has interrupted, which ends now."""
        assert self.status == 0, self.said
        calls = list(self.job.calls)
        self.end()
        return calls

    def _unmount(self) -> None:
        done = pyunion("umount", self._home / "union")
        assert (done.returncode, done.stderr) == (0, "")

    def again(self, whole: Snapshot | None) -> None:
        """What there is now is whole, or the same words make it."""
        made = self._home / self._made
        if self._made and made.exists() and made.name != "index.json":
            assert _state(made) == whole, "what is there is not whole"
            return
        done = pyunion(*self._words)
        assert (done.returncode, done.stderr) == (0, "")
        if self._words[0] == "mount":
            self._unmount()


def _names(home: Path) -> list[str]:
    return [name for name in tree(home) if not name.startswith(("union/", "other/"))]


def _is_mounted(home: Path) -> bool:
    return os.fsencode(home / "union") in [mount.point for mount in mounted()]


def _state(path: Path) -> Snapshot | None:
    return snapshot(path) if path.is_dir() else None


def _undo(home: Path) -> None:
    for name in ("out", "image"):
        shutil.rmtree(home / name)
    (home / "out").mkdir()
    shutil.copytree(home / "kept", home / "image")


@_each_command
def test_pressed_anywhere(home: Path, command: str) -> None:
    shutil.copytree(home / "image", home / "kept")
    template, made = _COMMANDS[command]
    words = template.format(at=home).split()
    count = len(_Try(home, words, made, []).calls_of_all())
    state = _state(home / made)
    _undo(home)
    ends = set()
    # Once, or once more a few calls later, when it is about to clear up.
    for number, later in zip(sample(range(1, count + 1), _POINTS), cycle((0, 4, 40)), strict=False):
        one = _Try(home, words, made, sorted({number, number + later}))
        where = f"at call {number} of {count} {one.job.calls[number - 1 : number + later]}: {one.said!r}"
        assert one.status in (0, -signal.SIGINT), where
        one.end()
        assert "Traceback" not in one.said, where
        one.again(state)
        ends.add(one.status)
        _undo(home)
    assert -signal.SIGINT in ends


def _in_the_foreground(home: Path) -> list[str]:
    return [*_COMMANDS["mount"][0].format(at=home).split(), "--foreground"]


@pytest.mark.parametrize("part", [0.05, 0.3, 0.6, 0.9])
def test_in_the_foreground_before_it_is_ready(home: Path, part: float) -> None:
    count = len(_Try(home, _in_the_foreground(home)[:-1], "", []).calls_of_all())
    _assert_interrupted(home, Job(_in_the_foreground(home), [int(part * count)]))


def test_in_the_foreground(home: Path) -> None:
    job = Job(_in_the_foreground(home))
    until(lambda: _is_mounted(home), "it is not mounted", PATIENCE)
    write(home / "union/new", "text")
    job.terminal.press_ctrl_c()
    _assert_interrupted(home, job)
    assert (home / "up/new").read_text() == "text"


def _assert_interrupted(home: Path, job: Job) -> None:
    status, said = job.await_end()
    assert (status, "Traceback" in said) == (-signal.SIGINT, False), said
    assert job.all_have_ended()
    assert not _is_mounted(home)


def test_while_its_modules_are_imported() -> None:
    start = [sys.executable, "-m", "pyunion", "info"]
    at_cli = ["-P", cli.__file__, "-P", cache_from_source(cli.__file__), "-e", "inject=openat:signal=SIGINT"]
    done = subprocess.run(
        ["strace", "-qq", "-o", os.devnull, *at_cli, *start],
        cwd=REPOSITORY, env=clean_environment(), capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
