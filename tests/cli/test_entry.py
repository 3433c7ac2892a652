"""What all commands share: usage errors, help, and readers that go away."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pyunion import __version__
from pyunion.errors import ExitCode
from tests.cli.command import clean_environment, pyunion


def test_version() -> None:
    assert pyunion("--version").stdout == f"pyunion {__version__}\n"


def test_no_command() -> None:
    done = pyunion()
    assert done.returncode == ExitCode.USAGE
    assert done.stderr == (
        "pyunion: the following arguments are required: COMMAND; see `pyunion --help`\n"
    )  # fmt: skip


@pytest.mark.parametrize("words", ["commit {} --lower / {}", "commit {} {} --lower /", "mount name -o lowerdir={} {}"])
def test_options_may_stand_between_two_paths(words: str) -> None:
    done = pyunion(*words.format("/nope", "/new").split())
    assert done.returncode == ExitCode.BRANCH
    assert "/nope" in done.stderr


def test_help_names_every_exit_status() -> None:
    text = " ".join(pyunion("--help").stdout.split())
    assert all(f"{code.value} {code.name.lower()}" in text for code in ExitCode)


def test_a_reader_that_leaves_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "pyunion", "info"],
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait() == ExitCode.FAILURE


@pytest.mark.parametrize("source", ["layers", "mount", "info"])
def test_a_mount_helper_takes_any_source(source: str) -> None:
    """The console scripts mount.pyunion and mount.fuse.pyunion: a source may have the name of a command."""
    script = "import sys; from pyunion.cli import mount_helper; sys.exit(mount_helper())"
    done = subprocess.run(
        [sys.executable, "-c", script, source, "/", "-o", "lowerdir=/nope"],
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == ExitCode.BRANCH
    assert done.stderr == "pyunion: lower branch /nope does not exist; create it or correct the path\n"


@pytest.mark.parametrize("words", [["layers", "/", "-o", "lowerdir=/nope"], ["-olowerdir=/nope", "/"]])
def test_without_a_command_options_mean_mount(words: list[str]) -> None:
    done = pyunion(*words)
    assert done.returncode == ExitCode.BRANCH
    assert done.stderr == "pyunion: lower branch /nope does not exist; create it or correct the path\n"
