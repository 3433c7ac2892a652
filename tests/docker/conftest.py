"""One dockerd for all tests of a module, and folders to mount its layers on."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.engine import Engine
from tests.harness import leaks
from tests.harness.filesystems import loop_mounted
from tests.harness.mounts import mounted
from tests.harness.warm import pyunion


@pytest.fixture(scope="module")
def engine(_can_mount: None) -> Iterator[Engine]:
    home = leaks.make_scratch()
    with loop_mounted("xfs", home / "xfs") as disk:
        (disk / "docker").mkdir()
        engine = Engine(home, disk / "docker")
        try:
            yield engine
        finally:
            engine.stop()
    leaks.remove_scratch(home)


class Viewer:
    """Mounts layers on `at`, as a user does."""

    def __init__(self, at: Path) -> None:
        self.at = at

    def mount(self, layer: Path, *arguments: str | Path) -> None:
        done = pyunion("mount", "--docker-layer", layer, *arguments, self.at)
        assert (done.returncode, done.stderr) == (0, "")

    def umount(self) -> None:
        done = pyunion("umount", self.at)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def viewer(scratch: Path, _can_mount: None) -> Iterator[Viewer]:
    made = Viewer(scratch / "seen")
    made.at.mkdir()
    yield made
    if any(mount.point == bytes(made.at) for mount in mounted()):
        subprocess.run(["umount", "--lazy", made.at], check=True)
