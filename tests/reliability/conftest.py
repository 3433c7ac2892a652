"""A small union on a file system in memory, for many short tries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import leaks
from tests.harness.files import run
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
