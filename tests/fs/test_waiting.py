"""Requests that run without a task until they have to wait."""

from __future__ import annotations

import os
import threading
from collections.abc import Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from pyunion.branch.remote import Remote
from pyunion.fs.locks import KeyedLock
from pyunion.fs.waiting import Done, in_thread, open_by, quickly, rest_of


async def finish(begun: Coroutine[Any, Any, None]) -> None:
    await rest_of(begun)


async def test_what_does_not_wait_is_done_at_once() -> None:
    async def request() -> str:
        return "answer"

    assert quickly(request()) == Done("answer")


async def test_what_waits_goes_on_in_a_task() -> None:
    seen: list[object] = []

    async def request() -> None:
        seen.append("begun")
        seen.append(await in_thread(threading.get_ident))

    begun = request()
    assert quickly(begun) is None
    assert seen == ["begun"]
    await finish(begun)
    assert seen[1] not in (None, threading.get_ident())


async def test_a_lock_taken_without_a_task_keeps_others_out_in_their_order() -> None:
    locks = KeyedLock()
    order: list[int] = []
    gate = threading.Event()

    async def request(number: int) -> None:
        async with locks.hold(1):
            order.append(number)
            if number == 0:
                await in_thread(gate.wait)

    requests = [request(number) for number in range(4)]
    assert [quickly(begun) for begun in requests] == [None] * 4
    assert order == [0]
    async with trio.open_nursery() as nursery:
        for begun in requests:
            nursery.start_soon(finish, begun)
            await trio.testing.wait_all_tasks_blocked()
        gate.set()
    assert order == [0, 1, 2, 3]
    assert len(locks) == 0


async def test_a_lock_that_has_become_free_meanwhile_is_taken_by_one() -> None:
    """Who had to wait gets his task after the holder has ended."""
    locks = KeyedLock()
    inside = 0

    async def request() -> None:
        nonlocal inside
        async with locks.hold(1):
            inside += 1
            assert inside == 1
            await in_thread(lambda: None)
            inside -= 1

    first, *others = [request() for _ in range(3)]
    assert [quickly(begun) for begun in (first, *others)] == [None] * 3
    await finish(first)
    async with trio.open_nursery() as nursery:
        for begun in others:
            nursery.start_soon(finish, begun)
    assert len(locks) == 0


async def test_an_error_after_the_wait_comes_to_the_task() -> None:
    async def request() -> None:
        await in_thread(lambda: None)
        raise FileNotFoundError

    begun = request()
    assert quickly(begun) is None
    with pytest.raises(FileNotFoundError):
        await finish(begun)


async def test_a_question_for_which_there_is_no_thread_keeps_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_room(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    fd = os.open(tmp_path, os.O_PATH)
    branch = SimpleNamespace(remote=Remote(b"/branch"))
    directory: Any = SimpleNamespace(branch=branch, pinned=True, parent=None, open_fd=fd)
    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as context:
        context.setattr(trio.to_thread, "run_sync", no_room)
        with pytest.raises(RuntimeError):
            await open_by(directory, os.listdir)
    assert os.listdir("/proc/self/fd") == before
    os.close(fd)
