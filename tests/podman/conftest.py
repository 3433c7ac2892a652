"""A storage with pyunion as its mount program."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.podman.store import PROGRAMS, Store


@pytest.fixture
def store(scratch: Path, _can_mount: None) -> Iterator[Store]:
    """With the image `base`; at the end of a test nothing is mounted and no daemon runs."""
    made = Store(scratch / "store", PROGRAMS["pyunion"])
    try:
        made.base()
        yield made
        made.assert_nothing_left()
    finally:
        made.close()
