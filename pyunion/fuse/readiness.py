"""How the daemon waits for the next request: the wait decides the speed of everything else.

pyfuse3 takes a trio.Lock, epoll and two task switches for each request, which costs more than the request. It
finds trio through its module attribute `trio` (the hook that pyfuse3.asyncio uses), and there we put a facade
whose wait_readable is cheaper while requests come in quick succession:

- one task at a time, the leader, polls the descriptor; the others are parked;
- trio gets its turn at least every SLICE_S, and whenever a task of its own could run;
- while a handler is suspended (it waits for a thread or a lock) all waiting is trio's, which the handler needs;
- while there was a request within LINGER_S the leader sleeps in poll(2), together with trio's own epoll
  descriptor, so that timers, threads and signals are late by LINGER_POLL_MS at most;
- when the mount is idle it waits in trio, which costs nothing.

With the extension the leader lets wire.serve() do the same, and requests that have a hook are answered there. Before
that sleeps it looks whether the next request comes, as long as that mostly finds one: to wake a processor that has gone
idle takes longer than most requests, several times as long in a virtual machine.

While there are many of them the leader keeps the machine's processors awake (awake.py), until a moment after the last.

Everything else of trio is passed through untouched. Knows nothing of requests.
"""

from __future__ import annotations

import os
import select
import signal
import time
from typing import Any

import pyfuse3
import trio

from pyunion.awake import QUIET_S, Awake
from pyunion.fuse import wire
from pyunion.fuse.guard import in_flight

SLICE_S = 0.002
LINGER_S = 0.003
LINGER_POLL_MS = 1
# A client that is killed between "readable" and read(2) takes its request along, and the read then sleeps with
# the interpreter's lock. A timer that ticks while the mount is busy interrupts it. The extension's reads do not sleep.
TICK_S = 0.25
_END = select.POLLERR | select.POLLHUP

_clock = time.perf_counter


class NoLock:
    """Stands in for the lock around pyfuse3's wait; the leader is the lock."""

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *_: object) -> None:
        pass


class Lowlevel:
    """trio.lowlevel, but for wait_readable and notify_closing of the session's descriptor."""

    def __init__(self, awake: Awake) -> None:
        self._awake = awake
        self._fd = -1
        self._closed = False
        self._leader: object | None = None
        self._sentinel = False  # one parked task waits in trio for the descriptor, the others for that task
        self._parked = trio.lowlevel.ParkingLot()
        self._ticking = False
        self._next_yield = 0.0
        self._last_request = 0.0
        self._epoll_fd = -1
        self._ready = select.poll()
        self._ready_or_trio = select.poll()

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    def notify_closing(self, fd: int) -> None:
        self._closed = True
        trio.lowlevel.notify_closing(fd)
        self._parked.unpark_all()

    async def wait_readable(self, fd: int) -> None:
        """Return when the session's descriptor has a request; raises trio.ClosedResourceError at the end."""
        if fd != self._fd:
            await self._set_up(fd)
        me = object()
        try:
            while True:
                if self._closed:
                    raise trio.ClosedResourceError
                if self._leader is not None and self._leader is not me:
                    await self._park()
                    continue
                self._leader = me
                if await (self._serve() if wire.serves() else self._lead()):
                    return
        finally:
            if self._leader is me:
                self._leader = None

    async def _serve(self) -> bool:
        """One turn of the leader with the extension, which answers requests itself: True when there is one for pyfuse3,
        False to go on."""
        await trio.lowlevel.checkpoint()
        lingers = _clock() - self._last_request < LINGER_S and not in_flight.count
        runnable = trio.lowlevel.current_statistics().tasks_runnable
        wait_s = LINGER_POLL_MS / 1000 if lingers and not runnable else 0.0
        served, requests = wire.serve(self._epoll_fd, SLICE_S, wait_s)
        if served is not wire.Served.NOTHING:
            self._last_request = _clock()
            self._awake.note(requests)
            if served is wire.Served.UP_TO_ONE_FOR_PYFUSE3:
                for _, events in self._ready.poll(0):
                    self._look_for_the_end(events)
                return True
            return False
        if not lingers and not runnable:
            await self._wait_in_trio()
        return False

    async def _lead(self) -> bool:
        """One turn of the leader without it: True when there is a request, False to look again."""
        now = _clock()
        if now >= self._next_yield:
            await trio.lowlevel.checkpoint()
            self._next_yield = _clock() + SLICE_S
            return False
        if ready := self._ready.poll(0):
            self._look_for_the_end(ready[0][1])
            self._last_request = now
            self._awake.note(1)
            if not self._ticking and not wire.present():
                signal.setitimer(signal.ITIMER_REAL, TICK_S, TICK_S)
                self._ticking = True
            return True
        if trio.lowlevel.current_statistics().tasks_runnable:
            self._next_yield = 0.0
            return False
        if now - self._last_request < LINGER_S and not in_flight.count:
            for fd, events in self._ready_or_trio.poll(LINGER_POLL_MS):
                if fd == self._fd:
                    self._look_for_the_end(events)
                    self._last_request = _clock()
                    self._awake.note(1)
                    return True
            self._next_yield = 0.0  # time passed, or something for trio
            return False
        if not in_flight.count:
            self.stop_ticking()
        await self._wait_in_trio()
        self._next_yield = self._last_request + SLICE_S
        return False

    async def _wait_in_trio(self) -> None:
        """The leader gives up its place until there is a request; it costs nothing."""
        self._leader = None
        if self._awake.held:
            with trio.move_on_after(QUIET_S) as moment:
                await self._park()
            if moment.cancelled_caught:
                self._awake.release()
        if not self._awake.held:
            await self._park()
        self._last_request = _clock()

    def _look_for_the_end(self, events: int) -> None:
        """The task that reads the end of the session does not come back to wait, and so has to wake all who are parked:
        none of them need be waiting in trio."""
        if events & _END:
            self._parked.unpark_all()

    async def _park(self) -> None:
        if self._closed:  # since the caller has looked: nobody will wake it
            return
        if self._sentinel:
            await self._parked.park()
            return
        self._sentinel = True
        try:
            await trio.lowlevel.wait_readable(self._fd)
        finally:
            self._sentinel = False
            self._parked.unpark()

    def close(self) -> None:
        """What has begun for the requests ends with them."""
        self.stop_ticking()
        self._awake.close()

    def stop_ticking(self) -> None:
        """End the timer. An armed one would kill the process once Python is shutting down."""
        if self._ticking:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self._ticking = False

    async def _set_up(self, fd: int) -> None:
        self._fd = fd
        self._next_yield = self._last_request = _clock()
        signal.signal(signal.SIGALRM, lambda *_: None)
        self._ready.register(fd, select.POLLIN)
        self._ready_or_trio.register(fd, select.POLLIN)
        self._epoll_fd = await _trio_epoll_fd()
        if self._epoll_fd >= 0:
            self._ready_or_trio.register(self._epoll_fd, select.POLLIN)


class Facade:
    """The module trio as pyfuse3 sees it."""

    Lock = NoLock

    def __init__(self, awake: Awake) -> None:
        self.lowlevel = Lowlevel(awake)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def install(awake: Awake) -> Lowlevel:
    """Put the facade in place; before pyfuse3.init(). Call close() of the result at the end."""
    facade = Facade(awake)
    pyfuse3.trio = facade  # type: ignore[attr-defined]
    return facade.lowlevel


async def _trio_epoll_fd() -> int:
    """The descriptor of trio's epoll instance: the one whose fdinfo (proc(5)) lists a pipe that trio waits for.

    -1 where it cannot be found; the leader then looks after trio once in LINGER_POLL_MS.
    """
    reader, writer = os.pipe()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, reader)
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()
            found = _epoll_fd_watching(reader)
            nursery.cancel_scope.cancel()
    finally:
        os.close(reader)
        os.close(writer)
    return found


def _epoll_fd_watching(probe: int) -> int:
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") != "anon_inode:[eventpoll]":
                continue
            with open(f"/proc/self/fdinfo/{name}", encoding="ascii") as file:
                for line in file:
                    if line.startswith("tfd:") and int(line.split()[1]) == probe:
                        return int(name)
        except (OSError, ValueError):
            continue
    return -1
