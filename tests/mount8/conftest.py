"""A machine on which pyunion is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.leaks import await_end
from tests.mount8.machine import Machine


@pytest.fixture
def machine(scratch: Path, _can_mount: None) -> Iterator[Machine]:
    """At the end of a test nothing is mounted on it any more, and each daemon has ended or is about to."""
    made = Machine(scratch)
    try:
        yield made
        assert made.unions() == []
        for pid in made.daemons():
            assert await_end(pid), f"the daemon {pid} has outlived its mount"
    finally:
        made.close()
