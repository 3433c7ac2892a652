"""`pyunion mount` that succeeds: it returns when the mount answers, and lets go of everything of its caller's."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyunion import mountinfo, users
from tests.cli.command import clean_environment, pyunion
from tests.harness.leaks import await_end
from tests.harness.mounts import PATIENCE, PyunionMount, mounted
from tests.harness.ready import until

_RW = ["--lower", "lower", "--upper", "upper", "--work", "work"]


@pytest.fixture
def place(here: Path, _can_mount: None) -> Iterator[Path]:
    """The directory `here`, with something to see, and nothing mounted on mnt afterwards."""
    (here / "lower/hello").write_text("hello\n")
    yield here
    PyunionMount(here / "mnt").abandon()


def _mount(place: Path, *arguments: str) -> str:
    """Mount on mnt; returns what was said."""
    done = pyunion("mount", *arguments, "mnt", cwd=place)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def _umount(place: Path) -> None:
    done = pyunion("umount", "mnt", cwd=place)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _daemon(place: Path) -> int:
    mount = mountinfo.topmost_at(os.fsencode(place / "mnt"))
    assert mount is not None
    pid = users.daemon_of(mount)
    assert pid is not None
    return pid


def test_it_returns_when_the_mount_answers(place: Path) -> None:
    assert _mount(place, *_RW) == ""
    assert (place / "mnt/hello").read_text() == "hello\n"
    (place / "mnt/new").write_text("new\n")
    _umount(place)
    assert (place / "upper/new").read_text() == "new\n"


def test_the_daemon_keeps_nothing_of_its_caller(place: Path) -> None:
    # the pipes of stdout and stderr are closed, or pyunion() would not have returned
    _mount(place, *_RW)
    process = Path(f"/proc/{_daemon(place)}")
    assert {os.readlink(process / f"fd/{fd}") for fd in range(3)} == {"/dev/null"}
    assert os.readlink(process / "cwd") == "/"
    assert (process / "stat").read_text().rpartition(")")[2].split()[3] == process.name  # its own session
    words = (process / "cmdline").read_bytes().split(b"\0")
    assert b"pyunion" in words
    assert b"mount" in words
    _umount(place)


def test_a_caller_that_wants_to_hear_of_no_child(place: Path) -> None:
    ignore = "signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    script = f"import os, signal, sys; {ignore}; os.execv(sys.argv[1], sys.argv[1:])"
    words = [sys.executable, "-m", "pyunion", "mount", *_RW, "mnt"]
    done = subprocess.run(
        [sys.executable, "-c", script, *words], cwd=place, env=clean_environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (place / "mnt/hello").read_text() == "hello\n"
    _umount(place)


def test_options_as_for_the_kernel(place: Path) -> None:
    _mount(place, "-o", "lowerdir=lower,upperdir=upper,workdir=work,nosuid,noatime,fsname=mine,x-test")
    line = next(text for text in Path("/proc/self/mountinfo").read_text().splitlines() if str(place) in text)
    assert re.search(r"\bnosuid\b.*\bnoatime\b.* - fuse\.pyunion mine ", line)
    (place / "mnt/hello").unlink()
    _umount(place)
    assert (place / "upper/hello").is_char_device()


def test_paths_with_separators(place: Path) -> None:
    for name in ("lower", "upper", "work"):
        (place / name).rename(place / f"{name}:,\\")
    options = ",".join(f"{name}dir={name}\\:\\,\\\\" for name in ("lower", "upper", "work"))
    _mount(place, "-o", options)
    assert (place / "mnt/hello").read_text() == "hello\n"
    _umount(place)


@pytest.mark.parametrize("arguments", [["--lower", "lower"], [*_RW, "-o", "ro"]])
def test_read_only(place: Path, arguments: list[str]) -> None:
    (place / "upper/above").touch()
    _mount(place, *arguments)
    assert sorted(os.listdir(place / "mnt")) == (["above", "hello"] if "upper" in arguments else ["hello"])
    with pytest.raises(OSError, match="Read-only file system"):
        (place / "mnt/new").touch()
    _umount(place)


def test_options_that_do_nothing_are_named(place: Path) -> None:
    said = _mount(place, *_RW, "-o", 'context="system_u:object_r:x_t:s0:c1,c2"')
    assert 'pyunion: SELinux option passed over: context="system_u:object_r:x_t:s0:c1,c2"\n' in said
    _umount(place)


def test_log_file(place: Path) -> None:
    _mount(place, *_RW, "--log-file", "log", "--log-level", "debug")
    assert (place / "log").exists()
    _umount(place)
    assert "Traceback" not in (place / "log").read_text()


def test_mount_over_its_own_branches(place: Path) -> None:
    (place / "lower/in").mkdir()
    for covered in ("lower", "lower/in", "upper", "."):
        done = pyunion("mount", *_RW, covered, cwd=place)
        assert done.returncode == 0, done.stderr
        assert "hello" in os.listdir(place / covered)
        assert os.listdir(place / covered / "in") == []
        assert pyunion("umount", place / covered, cwd=Path("/")).returncode == 0


@contextmanager
def _start_while(place: Path, at_mount: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start to mount; strace(1) does something to mount(2). The process is pyunion's."""
    trace = ["strace", "-D", "-qq", "-f", "-o", os.devnull, "-e", "trace=mount", "-e", f"inject=mount:{at_mount}"]
    command = [*trace, sys.executable, "-m", "pyunion", "mount", *_RW, *arguments, "mnt"]
    with subprocess.Popen(command, cwd=place, env=clean_environment(), stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _require_end(place: Path, process: subprocess.Popen[str], status: int = 0) -> None:
    _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, "Traceback" in said) == (status, False), said
    assert not _is_mounted(place)


def _is_mounted(place: Path) -> bool:
    return os.fsencode(place / "mnt") in [mount.point for mount in mounted()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_the_middle_of_mounting_leaves_no_dead_mount(place: Path, number: signal.Signals) -> None:
    status = -number if number == signal.SIGINT else 0  # as of any program that Ctrl-C ends
    with _start_while(place, f"signal={number.name}", "--foreground") as process:
        _require_end(place, process, status)


@pytest.mark.parametrize("arguments", [[], ["--metrics", "127.0.0.1:0"]], ids=["alone", "with other threads"])
def test_a_signal_from_others_in_the_middle_of_mounting(place: Path, arguments: Sequence[str]) -> None:
    """Which any thread may take."""
    with _start_while(place, "delay_exit=1s", "--foreground", *arguments) as process:
        until(lambda: _is_mounted(place), "it does not mount", PATIENCE)
        process.terminate()
        _require_end(place, process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_where_the_command_is_killed_before_the_mount_answers_there_is_none(
    place: Path, number: signal.Signals
) -> None:
    """As by timeout(1), or with a terminal that is closed."""
    with _start_while(place, "delay_exit=1s", "--log-file", "log") as process:
        until(lambda: _is_mounted(place), "it does not mount", PATIENCE)
        daemon = _daemon(place)
        process.send_signal(number)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == -number
    assert await_end(daemon)
    assert not _is_mounted(place)
    said = (place / "log").read_text()
    assert "SIGTERM: unmounting" in said
    assert "Traceback" not in said
