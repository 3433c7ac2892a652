"""Machines with systemd, and services on them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import leaks
from tests.service.machine import Machine
from tests.service.unit import Service


@pytest.fixture(scope="module")
def _off(debian: Path, _can_mount: None) -> Iterator[Machine]:
    """A machine that is not booted yet."""
    made = Machine(leaks.make_scratch(), debian)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def machine(_off: Machine) -> Machine:
    """One that runs, and is the same for all tests of a module."""
    _off.boot()
    return _off


@pytest.fixture
def service(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Service]:
    """A service of the test's own that is not started; at the test's end it stops, and nothing of it is left."""
    made = Service(machine, re.sub(r"\W+|_", "-", request.node.name.removeprefix("test_")).strip("-"))
    yield made
    made.end()
