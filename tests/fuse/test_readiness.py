"""The facade that waits for requests: every request is seen once, and nobody starves.

A pipe stands in for the session's descriptor; pyfuse3's workers are tasks that wait for it and read a byte.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from pyunion.awake import Awake
from pyunion.fuse import readiness, wire
from pyunion.fuse.readiness import Facade, Lowlevel


class Pipe:
    """A descriptor that becomes readable by ask(), as the session's does by a request."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        self.wait = Lowlevel(Awake(-1))
        self.handled = 0

    def ask(self, count: int = 1) -> None:
        os.write(self.writer, b"x" * count)

    async def worker(self) -> None:
        while True:
            await self.wait.wait_readable(self.reader)
            os.read(self.reader, 1)
            self.handled += 1

    async def until_handled(self, count: int) -> None:
        with trio.fail_after(10):
            while self.handled < count:
                await trio.sleep(0)


@pytest.fixture
async def pipe() -> AsyncIterator[Pipe]:
    before = signal.getsignal(signal.SIGALRM)
    made = Pipe()
    yield made
    made.wait.close()
    signal.signal(signal.SIGALRM, before)
    os.close(made.reader)
    os.close(made.writer)


async def test_each_request_is_seen_once_whatever_the_number_of_workers(pipe: Pipe) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(pipe.worker)
        for burst in (1, 7, 1, 100):
            before = pipe.handled
            pipe.ask(burst)
            await pipe.until_handled(before + burst)
        nursery.cancel_scope.cancel()
    assert pipe.handled == 109


async def test_other_tasks_and_threads_go_on_under_an_endless_stream_of_requests(pipe: Pipe) -> None:
    async def hungry() -> None:
        while True:
            await pipe.wait.wait_readable(pipe.reader)  # and never reads it: always readable

    pipe.ask()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hungry)
            for _ in range(50):
                await trio.lowlevel.checkpoint()
            assert await trio.to_thread.run_sync(os.getpid) == os.getpid()
            await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


async def test_a_signal_arrives_under_load(pipe: Pipe) -> None:
    async def hungry() -> None:
        while True:
            await pipe.wait.wait_readable(pipe.reader)

    pipe.ask()
    with trio.fail_after(10), trio.open_signal_receiver(signal.SIGUSR1) as received:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hungry)
            os.kill(os.getpid(), signal.SIGUSR1)
            async for number in received:
                assert number == signal.SIGUSR1
                break
            nursery.cancel_scope.cancel()


async def test_when_idle_the_wait_is_trios_and_a_request_ends_it(pipe: Pipe) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pipe.worker)
        pipe.ask()
        await pipe.until_handled(1)
        with trio.fail_after(10):
            # all tasks blocked means that nobody polls: an idle mount costs nothing
            await trio.testing.wait_all_tasks_blocked(cushion=0.02)
        pipe.ask()
        await pipe.until_handled(2)
        nursery.cancel_scope.cancel()


async def test_the_end_of_the_session_ends_every_worker(pipe: Pipe) -> None:
    """Whoever reads it does not come back; the end of a pipe stands for that of the session."""

    async def worker() -> None:
        while True:
            await pipe.wait.wait_readable(pipe.reader)
            if not os.read(pipe.reader, 1):
                return

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(worker)
            await trio.testing.wait_all_tasks_blocked(cushion=0.02)
            os.close(pipe.writer)
            pipe.writer = os.open(os.devnull, os.O_WRONLY)


async def test_closing_ends_every_waiting_worker(pipe: Pipe) -> None:
    ended = 0

    async def worker() -> None:
        nonlocal ended
        with pytest.raises(trio.ClosedResourceError):
            await pipe.wait.wait_readable(pipe.reader)
        ended += 1

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(worker)
            await trio.testing.wait_all_tasks_blocked(cushion=0.02)
            pipe.wait.notify_closing(pipe.reader)
    assert ended == 3


@pytest.mark.parametrize("turns", range(12))
async def test_closing_at_any_moment_ends_a_worker_whom_the_extension_serves(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """Also between two of its looks, when it is not waiting for anything."""
    monkeypatch.setattr(wire, "serves", lambda: True)
    monkeypatch.setattr(wire, "serve", lambda *_: (wire.Served.NOTHING, 0))
    monkeypatch.setattr(readiness, "LINGER_S", -1)
    ended = trio.Event()

    async def worker() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await pipe.wait.wait_readable(pipe.reader)
        ended.set()

    await pipe.wait._set_up(pipe.reader)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker)
            for _ in range(turns):
                await trio.lowlevel.cancel_shielded_checkpoint()
            pipe.wait.notify_closing(pipe.reader)
            await ended.wait()


def test_the_facade_is_trio_but_for_the_wait() -> None:
    facade = Facade(Awake(-1))
    assert facade.open_nursery is trio.open_nursery
    assert facade.lowlevel.current_trio_token is trio.lowlevel.current_trio_token
