"""The directories that commands are tried on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.mounts import Layers, PyunionMount


@pytest.fixture
def here(scratch: Path) -> Path:
    """A directory with lower, upper, work, mnt and a file `file`."""
    for name in ("lower", "upper", "work", "mnt"):
        (scratch / name).mkdir()
    (scratch / "file").touch()
    return scratch


@pytest.fixture
def mounted(here: Path, _can_mount: None) -> Iterator[PyunionMount]:
    """A union on here/mnt, which the test may unmount or kill."""
    (here / "lower/hello").write_text("hello\n")
    mount = PyunionMount(here / "mnt")
    mount.start(Layers([here / "lower"], here / "upper", here / "work"))
    yield mount
    if mount in PyunionMount.live:
        mount.abandon()
