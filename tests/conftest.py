"""Fixtures for all tests, and the session's end: nothing may stay mounted or running."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from pyunion.branch import syscalls
from pyunion.fuse import wire as wire  # before pyfuse3, as in the program: some tests fork a daemon of this process
from tests.harness import leaks
from tests.harness.mounts import REPOSITORY
from tests.harness.union import Union

# The same examples in every run; PYUNION_EXAMPLES=2000 looks further, with new ones each time.
_EXAMPLES = os.environ.get("PYUNION_EXAMPLES")
settings.register_profile(
    "pyunion",
    max_examples=int(_EXAMPLES or 60),
    derandomize=_EXAMPLES is None,
    deadline=None,
    database=None,
    print_blob=True,
)
settings.load_profile("pyunion")


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    """A test that runs the daemon's parts in this process, or one before it, may have changed it."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory on the machine's own disk, removed at the end."""
    path = leaks.make_scratch()
    yield path
    leaks.remove_scratch(path)


@pytest.fixture(scope="session")
def _can_mount() -> None:
    """A machine where nothing can be mounted fails the tests; it does not skip them."""
    assert os.geteuid() == 0, "these tests mount file systems and need root"
    assert Path("/dev/fuse").exists(), "there is no /dev/fuse"


@pytest.fixture(params=["pyunion", "kernel"])
def union(request: pytest.FixtureRequest, scratch: Path, _can_mount: None) -> Iterator[Union]:
    """A union for behaviour that pyunion shares with the kernel's overlayfs; the test runs on both."""
    made = Union(scratch, request.param)
    yield made
    made.clean_up()


@pytest.fixture
def pyunion(scratch: Path, _can_mount: None) -> Iterator[Union]:
    """A union for what pyunion promises beyond overlayfs."""
    made = Union(scratch, "pyunion")
    yield made
    made.clean_up()


@pytest.fixture
def bare(pyunion: Union) -> Union:
    """A union whose daemon runs from a copy of the package in which the extension was not built."""
    copy = pyunion.base / "bare"
    shutil.copytree(REPOSITORY / "pyunion", copy / "pyunion", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    pyunion.daemon.package_at = copy
    return pyunion


@pytest.fixture(scope="session")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The root directory of a small but whole Debian, for tests that leave it as it is: as a lower branch."""
    root = tmp_path_factory.mktemp("debian") / "root"
    subprocess.run([REPOSITORY / "scripts/debian-root", root], check=True)
    yield root
    subprocess.run(["rm", "-rf", root], check=True)


_left = pytest.StashKey[list[str]]()  # what the session and its workers have left behind


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_left] = []
    if hasattr(config, "workerinput") and os.geteuid() == 0:
        # Of pytest-xdist. A program in a mount namespace of its own has a copy of all mounts there are, which go on
        # until it ends: those of the other worker are none of its business.
        syscalls.enter_private_mount_namespace()


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[_left].extend(getattr(node, "workeroutput", {}).get("left", ()))


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    left = leaks.leaked()
    if left:
        leaks.clear_leaks()
    worker = getattr(session.config, "workeroutput", None)
    if worker is not None:
        worker["left"] = left
        return
    of_workers = session.config.stash[_left]
    left += of_workers
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line("")
            for line in left:
                reporter.write_line(f"LEAK: {line}", red=True)
