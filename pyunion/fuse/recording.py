"""How long requests take, on which paths and for which processes: recorded only while somebody looks.

Owns the recorders and the wrappers around what answers requests, which are put in place with the first recorder and are
gone with the last one, so that nobody pays for them at other times. What a recorder holds is bounded. The numbers of
requests alone are always counted, by tally.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple

from pyunion.fs.filesystem import FileSystem
from pyunion.fuse import layout
from pyunion.fuse.layout import Op
from pyunion.fuse.operations import Operations
from pyunion.fuse.rawops import RawRequests, Reply
from pyunion.fuse.tally import kind_of, name_of
from pyunion.fuse.wire import Hook

MOST_NAMED = 2000  # paths, and processes, that a recorder tells apart; further ones are counted together
OTHERS = b"(others)"
_LONGEST_PATH = 500
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

_clock = time.perf_counter_ns

# The requests for a name in the directory that they are sent to, and where in the body it begins.
_NAME_AT = {
    **dict.fromkeys((Op.LOOKUP, Op.UNLINK, Op.RMDIR, Op.SYMLINK), 0),
    Op.MKNOD: layout.MKNOD.size,
    Op.MKDIR: layout.MKDIR.size,
    Op.CREATE: layout.CREATE.size,
    Op.LINK: layout.LINK.size,
    Op.RENAME: layout.RENAME.size,
    Op.RENAME2: layout.RENAME2.size,
}
# The same by the names of pyfuse3's handlers; and those that are given the handle of a file.
_WITH_NAME = frozenset(name_of(kind) for kind in _NAME_AT)
_WITH_HANDLE = frozenset({"read", "write", "flush", "release", "fsync"})
_HANDLERS = tuple(name for name, handler in vars(Operations).items() if hasattr(handler, "__wrapped__"))  # guarded


class Latencies:
    """Durations in buckets of an eighth of their power of two, so that a quantile is right to an eighth."""

    __slots__ = ("buckets", "count", "longest_ns", "total_ns")

    def __init__(self) -> None:
        self.buckets: Counter[int] = Counter()
        self.count = self.total_ns = self.longest_ns = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.total_ns += ns
        if ns > self.longest_ns:
            self.longest_ns = ns
        shift = max(ns.bit_length() - 4, 0)
        self.buckets[shift << 4 | ns >> shift] += 1

    def quantile(self, part: float) -> int:
        """Nanoseconds that this part of the requests did not exceed: the upper end of the bucket."""
        left = part * self.count
        for bucket in sorted(self.buckets):
            left -= self.buckets[bucket]
            if left <= 0:
                shift = bucket >> 4
                return min((bucket & 15) + 1 << shift, self.longest_ns)
        return self.longest_ns

    def told(self) -> dict[str, float]:
        """For a report: the number of requests, and microseconds."""
        quantiles = {name: self.quantile(part) / 1000 for name, part in _QUANTILES.items()}
        mean, longest = self.total_ns / self.count / 1000, self.longest_ns / 1000
        return {"requests": self.count, "mean": mean, **quantiles, "max": longest}


class Recorder:
    """What has come since the last report to one who looks."""

    def __init__(self) -> None:
        self._begun = _clock()
        self._kinds: dict[int, Latencies] = {}
        self._paths: Counter[bytes] = Counter()
        self._processes: Counter[tuple[int, bytes]] = Counter()

    def add(self, kind: int, path: bytes, process: tuple[int, bytes], ns: int) -> None:
        latencies = self._kinds.get(kind)
        if latencies is None:
            latencies = self._kinds[kind] = Latencies()
        latencies.add(ns)
        paths, processes = self._paths, self._processes
        paths[path if path in paths or len(paths) < MOST_NAMED else OTHERS] += 1
        processes[process if process in processes or len(processes) < MOST_NAMED else (0, OTHERS)] += 1

    def report(self, most: int) -> dict[str, Any]:
        """Everything since the last report, which begins anew: `most` of the busiest paths and processes."""
        now = _clock()
        told = {
            "seconds": (now - self._begun) / 1e9,
            "kinds": {name_of(kind): latencies.told() for kind, latencies in self._kinds.items()},
            "paths": [{"path": os.fsdecode(path), "requests": n} for path, n in self._paths.most_common(most)],
            "processes": [
                {"pid": pid, "command": os.fsdecode(command), "requests": n}
                for (pid, command), n in self._processes.most_common(most)
            ],
        }
        self._begun, self._kinds = now, {}
        self._paths.clear()
        self._processes.clear()
        return told


class _Begun(NamedTuple):
    """A request that is being answered. The path is asked for first, as the request may change or remove it."""

    kind: int
    path: bytes
    pid: int
    ns: int


class Recording:
    """The recorders of one session, and the wrappers that feed them. `hand_to` has the requests of the extension
    answered by another hook."""

    def __init__(
        self, fs: FileSystem, operations: Operations, raw: RawRequests, hand_to: Callable[[Hook], object]
    ) -> None:
        self._fs = fs
        self._operations = operations
        self._raw = raw
        self._hand_to = hand_to
        self._recorders: list[Recorder] = []
        self._commands: dict[int, bytes] = {}
        self._waiting: dict[int, _Begun] = {}  # by the kernel's number of the request

    def start(self) -> Recorder:
        recorder = Recorder()
        self._recorders.append(recorder)
        if len(self._recorders) == 1:
            self._wrap()
        return recorder

    def stop(self, recorder: Recorder) -> None:
        self._recorders.remove(recorder)
        if not self._recorders:
            self._unwrap()

    def _wrap(self) -> None:
        for name in _HANDLERS:
            setattr(self._operations, name, self._handler(name, getattr(self._operations, name)))
        self._raw.finish = self._finish  # type: ignore[method-assign]
        self._hand_to(self._hook)

    def _unwrap(self) -> None:
        self._hand_to(self._raw.hook)
        for owner, name in ((self._raw, "finish"), *((self._operations, name) for name in _HANDLERS)):
            delattr(owner, name)  # the class's own shows again
        self._commands.clear()

    # -- with the extension -----------------------------------------------------------------------------------

    def _hook(self, opcode: int, unique: int, node: int, uid: int, gid: int, pid: int, body: bytes) -> Reply:
        begun = _Begun(opcode, self._path(node, _name_in(opcode, body)), pid, _clock())
        answer = self._raw.hook(opcode, unique, node, uid, gid, pid, body)
        if answer is True:
            self._waiting[unique] = begun
        else:
            self._note(begun)
        return answer

    async def _finish(self, opcode: int, unique: int, rest: Coroutine[Any, Any, Reply]) -> None:
        try:
            await RawRequests.finish(self._raw, opcode, unique, rest)
        finally:
            self._note(self._waiting.pop(unique))

    # -- and without ------------------------------------------------------------------------------------------

    def _handler(self, name: str, handler: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        kind = kind_of(name)

        async def wrapper(*args: Any) -> Any:
            begun = _Begun(kind, self._path_of(name, args), getattr(args[-1], "pid", 0), _clock())
            try:
                return await handler(*args)
            finally:
                self._note(begun)

        return wrapper

    def _path_of(self, handler: str, args: tuple[Any, ...]) -> bytes:
        if handler in _WITH_HANDLE:
            return self._path(self._fs.files.node_of(args[0]))
        if handler in _WITH_NAME:
            return self._path(*(args[1:3] if handler == "link" else args[:2]))
        return self._path(args[0])

    # -- with both --------------------------------------------------------------------------------------------

    def _note(self, begun: _Begun) -> None:
        ns = _clock() - begun.ns
        process = (begun.pid, self._command(begun.pid))
        for recorder in self._recorders:
            recorder.add(begun.kind, begun.path, process, ns)

    def _path(self, number: int, name: bytes = b"") -> bytes:
        """Where in the union a node is, or a name in it. What is wrong with a request it has to say itself."""
        node = self._fs.table.nodes.get(number)
        if node is None:
            return OTHERS
        path = node.path() + b"/" + name if name else node.path() or b"/"
        return path if len(path) <= _LONGEST_PATH else b"..." + path[-_LONGEST_PATH:]

    def _command(self, pid: int) -> bytes:
        """The name of a process, asked for once: it may be gone before the report."""
        known = self._commands.get(pid)
        if known is None:
            if len(self._commands) >= MOST_NAMED:
                self._commands.clear()
            known = self._commands[pid] = _read_command(pid)
        return known


def _name_in(opcode: int, body: bytes) -> bytes:
    start = _NAME_AT.get(opcode)  # type: ignore[call-overload]
    return b"" if start is None else body[start:].partition(b"\0")[0]


def _read_command(pid: int) -> bytes:
    if pid == 0:
        return b"(kernel)"
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return file.read().rstrip(b"\n")
    except OSError:
        return b"?"
