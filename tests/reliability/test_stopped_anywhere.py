"""The daemon is stopped at its system calls: killed there, or the call fails, or its client dies meanwhile.

scripts/reliability goes through all of them; here a few of each operation are tried.
"""

from __future__ import annotations

import errno

import pytest

from trials import clients, faults, kills
from trials.operations import OPERATIONS, Operation
from trials.union import Home

each_operation = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)


@each_operation
def test_a_daemon_killed_anywhere_leaves_each_object_wholly_old_or_wholly_new(home: Home, operation: Operation) -> None:
    tries = list(kills.walk(home, operation, most=2))
    assert tries
    assert [one for one in tries if one.lost] == []


@each_operation
def test_a_failing_system_call_is_told_and_leaves_nothing_half_done(home: Home, operation: Operation) -> None:
    tries = list(faults.walk(home, operation, most=2))
    assert tries
    assert [one for one in tries if one.lost] == []


def test_an_open_that_fails_truncates_nothing(home: Home) -> None:
    (operation,) = [operation for operation in OPERATIONS if operation.name == "open with O_TRUNC"]
    tries = list(faults.walk(home, operation, [errno.EMFILE]))
    assert tries
    assert [one for one in tries if one.lost] == []


@pytest.mark.parametrize("extension", [True, False])
def test_a_killed_client_never_freezes_the_daemon(home: Home, extension: bool) -> None:
    tries = list(clients.walk(home, OPERATIONS, 15, extension=extension))
    assert len(tries) == 15
    assert [one for one in tries if one.lost] == []
