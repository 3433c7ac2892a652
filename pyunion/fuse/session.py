"""The session with the kernel: mounting, serving, unmounting.

Owns the mount options and the end of the mount: on a signal it unmounts, waits while somebody keeps the mount busy, and
detaches it only when it is asked a second time; a copy in another mount namespace ends then, too. A signal that comes
between mount(2) and the first request waits until then. Branches and the file system are built elsewhere.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from errno import EBUSY, EINVAL
from functools import partial
from typing import Any

import pyfuse3
import trio

from pyunion import mountinfo, users
from pyunion.awake import Awake
from pyunion.errors import ExitCode, PyunionError
from pyunion.fs.filesystem import FileSystem
from pyunion.fuse import readiness, wire
from pyunion.fuse.backing import Backing
from pyunion.fuse.operations import Operations
from pyunion.fuse.rawops import RawRequests
from pyunion.fuse.recording import Recording
from pyunion.notify import Listener
from pyunion.unmounting import unmount

log = logging.getLogger(__name__)

_RETRY_S = 0.2
_READ_AHEAD_KIB = 1024
_TASKS = 99  # that answer requests, at most; none ends while others are parked and count on it (readiness)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def _read_ahead(device: int) -> None:
    """Let the kernel ask for as much at a time as a request can carry, eight times its default; for root only
    (Documentation/ABI/testing/sysfs-class-bdi)."""
    path = f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb"
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(str(_READ_AHEAD_KIB))
    except OSError as error:
        log.debug("read-ahead stays as it is: %s", error)


@contextmanager
def signals_held() -> Iterator[None]:
    """To be entered before there is a mount, which a signal's default action would leave dead; and before any thread is
    started that lives as long, as a signal is for whichever thread takes it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Session:
    """One mount, from mount(2) to its end."""

    def __init__(
        self,
        fs: FileSystem,
        backing: Backing,
        awake: Awake,
        mountpoint: bytes,
        fsname: str,
        flags: Sequence[str],
        read_only: bool,
    ) -> None:
        self._fs = fs
        self._mountpoint = mountpoint
        self._wait = readiness.install(awake)
        self._tasks: trio.Nursery | None = None
        self._is_unmounted = False  # where we see it
        self._unmounting = trio.Lock()
        self.interrupted = False  # told to end by Ctrl-C
        operations = Operations(fs)
        raw = RawRequests(fs, backing, self._start_task)
        hand_to = partial(wire.configure, raw.opcodes, passthrough=fs.settings.passthrough)
        hand_to(raw.hook)
        self.recording = Recording(fs, operations, raw, hand_to)
        options = {f"fsname={fsname}", "subtype=pyunion", "default_permissions", *flags}
        if os.geteuid() == 0:
            options.add("allow_other")
        if read_only:
            options.add("ro")
        try:
            pyfuse3.init(operations, os.fsdecode(mountpoint), options)
        except RuntimeError:
            raise PyunionError(
                f"cannot mount on {os.fsdecode(mountpoint)}: the kernel or fusermount3 refused; "
                "see the line above, or the system's log",
                ExitCode.MOUNT,
            ) from None

    async def serve(self, listener: Listener, *services: Callable[[], Awaitable[None]]) -> None:
        """Answer requests until the mount ends, and tell the listener when it answers, lives and ends. `services` run
        meanwhile."""
        async with trio.open_nursery() as nursery:
            self._tasks = nursery
            await nursery.start(self._handle_signals, listener)
            nursery.start_soon(self._announce, listener)
            nursery.start_soon(self._fs.files.unopened.open_later)
            for service in services:
                nursery.start_soon(service)
            if listener.ping_s is not None:
                nursery.start_soon(self._ping, listener, listener.ping_s)
            await pyfuse3.main(min_tasks=_TASKS, max_tasks=_TASKS)
            nursery.cancel_scope.cancel()
        listener.stopping()

    def _start_task(self, *task: Any) -> None:
        assert self._tasks is not None
        self._tasks.start_soon(*task)

    async def _ping(self, listener: Listener, every_s: float) -> None:
        """From the loop that answers requests: a request that never ends stops the pings as well."""
        while True:
            listener.alive()
            await trio.sleep(every_s)

    async def _announce(self, listener: Listener) -> None:
        st = await trio.to_thread.run_sync(os.stat, self._mountpoint, abandon_on_cancel=True)
        _read_ahead(st.st_dev)
        granted = wire.granted()
        names = ", ".join(flag.name or "" for flag in wire.Init if flag in granted)
        log.info("granted by the kernel: %s", names or "nothing beyond what pyfuse3 asks for")
        listener.ready()

    async def _handle_signals(
        self, listener: Listener, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(*_SIGNALS) as received:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            task_status.started()
            async with trio.open_nursery() as nursery:
                first = True
                async for number in received:
                    log.info("%s: unmounting %s", signal.Signals(number).name, os.fsdecode(self._mountpoint))
                    if first:
                        first = False
                        self.interrupted = number == signal.SIGINT
                        listener.stopping()
                        nursery.start_soon(self._unmount_when_free, listener)
                    else:
                        await self._end_now()

    async def _end_now(self) -> None:
        async with self._unmounting:
            unmounted = self._is_unmounted
        if unmounted:
            log.warning("another mount namespace has a copy of the mount, which is dead from now on")
            pyfuse3.terminate()
        else:
            await self._try_unmount(detach=True)

    async def _unmount_when_free(self, listener: Listener) -> None:
        told = False
        while not await self._try_unmount(detach=False):
            if not told:
                told = True
                busy = await trio.to_thread.run_sync(self._busy, abandon_on_cancel=True)
                log.warning("%s; a second signal detaches it", busy)
                listener.busy(busy)
            await trio.sleep(_RETRY_S)

    def _busy(self) -> str:
        """In a thread, as there may be many processes to look at."""
        mount = mountinfo.topmost_at(self._mountpoint)
        sentence = f"{os.fsdecode(self._mountpoint)} was busy" if mount is None else users.busy(mount)
        return f"{sentence}; open files: {len(self._fs.files)}; unmounting when it is free"

    async def _try_unmount(self, detach: bool) -> bool:
        """Unmount; False when it is busy. In a thread, as the kernel asks us to write back what it holds. Never twice,
        as what is mounted there then is not ours."""
        async with self._unmounting:
            if self._is_unmounted:
                return True
            try:
                await trio.to_thread.run_sync(partial(unmount, self._mountpoint, detach=detach))
            except OSError as error:
                if error.errno == EBUSY:
                    return False
                if error.errno != EINVAL:  # not mounted any more: somebody else was faster
                    log.error("cannot unmount %s: %s", os.fsdecode(self._mountpoint), error.strerror)
            self._is_unmounted = True
            return True

    def close(self) -> None:
        """Give the session back. A mount point that is still mounted is left dead (ENOTCONN), never empty."""
        self._wait.close()
        pyfuse3.close(unmount=False)
