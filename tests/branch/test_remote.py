"""The thread that closes files of branches which may not answer."""

from __future__ import annotations

import os
import threading

import pytest

from pyunion.branch.remote import Remote, close
from tests.harness.ready import readable


def test_what_there_is_no_thread_for_is_closed_later_and_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a user may have no more of them (RLIMIT_NPROC)."""
    order: list[int] = []
    reader, writer = os.pipe()

    def no_room(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    remote = Remote(b"/branch")
    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", no_room)
        remote.in_order(lambda: order.append(1))
        close(writer, remote)
    remote.in_order(lambda: order.append(2))
    assert readable(reader, seconds=10)
    assert os.read(reader, 1) == b""
    done = threading.Event()
    remote.in_order(done.set)
    assert done.wait(10)
    assert order == [1, 2]
    os.close(reader)
