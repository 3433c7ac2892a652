"""The control socket's protocol, answered in the daemon's own loop. Only root and the daemon's user are answered.

One JSON object per line each way, in ASCII; the client asks and the daemon answers, one at a time:

    {"do": "status"}                        the facts, as pyunion/control/facts.py has them
    {"do": "log-level"}                     {"level": "info"}; with "level": "debug" the level is that from now on
    {"do": "sample", "most": 20}            what was recorded since the last sample on this connection, as
                                            pyunion/fuse/recording.py reports it; the first one begins the recording,
                                            which ends with the connection
    {"do": "branches", "add": "/a", "position": 2}      other lower branches from now on, see pyunion/live.py; also
                                            with "remove": a path, or "set": the list of all; {"branches": [paths]}
    {"do": "refresh"}                       what is in the lower branches is looked at anew

The answer is {"ok": ...} or {"error": "a sentence"}, with a "code" beside it if the command has an exit status for it.
Owns the limits by which no client can make the daemon grow or
keep it from its requests: so many connections, so long a line, so long for a line to come and for an answer to be
taken, and a pause after each answer. A connection that breaks one is closed, with a sentence where that can be told.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import trio

from pyunion import logs
from pyunion.config import LOG_LEVELS
from pyunion.errors import PyunionError
from pyunion.fuse.recording import Recorder, Recording

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 16
LONGEST_LINE = 1 << 16  # bytes: a list of hundreds of branches is the longest
LINE_S = 90.0  # for a line to come, from the answer before it
ANSWER_S = 5.0  # for an answer to be taken
PAUSE_S = 0.01
MOST_SAMPLED = 100
_RETRY_S = 0.2  # after accept(2) failed, by a limit of descriptors

Change = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

_CREDENTIALS = struct.Struct("=iII")  # struct ucred: pid, uid, gid


class _Refusal(Exception):
    """The sentence that is the answer."""


class Server:
    """Answers on one listening socket. `overflow` is the number that stands for users whom our user namespace does not
    have, None where there are none; `facts` gives the status; `change` changes the branches, or raises PyunionError."""

    def __init__(
        self,
        listener: socket.socket,
        recording: Recording,
        facts: Callable[[], Awaitable[dict[str, Any]]],
        change: Change,
        overflow: int | None,
    ) -> None:
        self._listener = listener
        self._recording = recording
        self._facts = facts
        self._change = change
        self._connections = 0
        self._answered = {0, os.geteuid()}
        if overflow is not None and listener.getsockname()[:1] not in (b"\0", "\0"):
            # In a user namespace root of the machine has no number of its own. The socket's mode, which lets in its
            # owner and root, has decided.
            self._answered.add(overflow)

    async def serve(self) -> None:
        """Answer until cancelled. Never raises anything else: the mount does not depend on it."""
        self._listener.setblocking(False)
        listener = trio.socket.from_stdlib_socket(self._listener)
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    connection, _ = await listener.accept()
                except OSError as error:
                    if error.errno != errno.ECONNABORTED:
                        log.warning("a control connection was not accepted: %s", error.strerror)
                        await trio.sleep(_RETRY_S)
                    continue
                nursery.start_soon(self._converse, connection, self._refusal(connection))

    async def _converse(self, connection: trio.socket.SocketType, refusal: str | None) -> None:
        try:
            with connection:
                stream = trio.SocketStream(connection)
                if refusal is not None:
                    await _send(stream, {"error": refusal})
                else:
                    await _Conversation(stream, self._recording, self._facts, self._change).run()
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            pass  # the client has gone, or takes no answers
        except Exception:
            log.exception("a control connection failed")
        finally:
            self._connections -= refusal is None

    def _refusal(self, connection: trio.socket.SocketType) -> str | None:
        """Why the connection ends at once; None for one that counts from now on."""
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, uid, _ = _CREDENTIALS.unpack(raw)
        if uid not in self._answered:
            return f"only root and user {os.geteuid()}, whose mount this is, are answered, and not user {uid}"
        if self._connections == MOST_CONNECTIONS:
            return f"there are {MOST_CONNECTIONS} control connections already; end one of them"
        self._connections += 1
        return None


class _Conversation:
    """One client, from its first line to its last."""

    def __init__(
        self,
        stream: trio.SocketStream,
        recording: Recording,
        facts: Callable[[], Awaitable[dict[str, Any]]],
        change: Change,
    ) -> None:
        self._stream = stream
        self._recording = recording
        self._facts = facts
        self._change = change
        self._recorder: Recorder | None = None
        self._received = bytearray()

    async def run(self) -> None:
        try:
            while (line := await self._line()) is not None:
                try:
                    answer = {"ok": await self._answer(line)}
                except _Refusal as refusal:
                    answer = {"error": str(refusal)}
                except PyunionError as error:
                    answer = {"error": str(error), "code": error.exit_code}
                await _send(self._stream, answer)
                await trio.sleep(PAUSE_S)
        finally:
            if self._recorder is not None:
                self._recording.stop(self._recorder)

    async def _line(self) -> bytes | None:
        """The next line; None at the end, and when a limit was reached."""
        received = self._received
        with trio.move_on_after(LINE_S):
            while (end := received.find(b"\n")) < 0:
                if len(received) > LONGEST_LINE:
                    await _send(self._stream, {"error": f"a line has {LONGEST_LINE} bytes at most"})
                    return None
                more = await self._stream.receive_some(4096)
                if not more:
                    return None
                received += more
            line = bytes(received[:end])
            del received[: end + 1]
            return line
        return None

    async def _answer(self, line: bytes) -> Any:
        try:
            asked = json.loads(line)
        except (ValueError, RecursionError):
            raise _Refusal("a line has to be one JSON object") from None
        if not isinstance(asked, dict):
            raise _Refusal("a line has to be one JSON object")
        match asked.get("do"):
            case "status":
                return await self._facts()
            case "log-level":
                return self._log_level(asked.get("level"))
            case "sample":
                return self._sample(asked.get("most"))
            case "branches" | "refresh":
                return await self._change(asked)
        raise _Refusal('"do" has to be one of status, log-level, sample, branches and refresh')

    @staticmethod
    def _log_level(level: object) -> dict[str, str]:
        root = logging.getLogger()
        if level is not None:
            if level not in LOG_LEVELS:
                raise _Refusal(f"a log level is one of {', '.join(LOG_LEVELS)}")
            logs.set_level(str(level))
            log.info("the log level is %s", level)
        return {"level": logging.getLevelName(root.level).lower()}

    def _sample(self, most: object) -> dict[str, Any]:
        if not isinstance(most, int) or not 0 <= most <= MOST_SAMPLED:
            raise _Refusal(f'"most" has to be a number up to {MOST_SAMPLED}')
        if self._recorder is None:
            self._recorder = self._recording.start()
        return self._recorder.report(most)


async def _send(stream: trio.SocketStream, answer: dict[str, Any]) -> None:
    """Raises trio.TooSlowError where the client does not take it."""
    with trio.fail_after(ANSWER_S), suppress(trio.BrokenResourceError):
        await stream.send_all(json.dumps(answer).encode("ascii") + b"\n")
