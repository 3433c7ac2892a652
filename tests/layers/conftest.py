"""A dockerd for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import leaks
from tests.layers.docker import Docker


@pytest.fixture(scope="session")
def docker(_can_mount: None) -> Iterator[Docker]:
    scratch = leaks.make_scratch()
    made = Docker(scratch / "docker")
    yield made
    made.close()
    leaks.remove_scratch(scratch)
