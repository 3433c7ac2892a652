"""The commands' side of the control socket: from a mount to its daemon, one question and one answer at a time.

Owns the way there and the sentences that say why it is closed. Knows nothing of what is asked.
"""

from __future__ import annotations

import contextlib
import json
import os
from types import TracebackType
from typing import Any

from pyunion import board, mountinfo, users
from pyunion.control import address
from pyunion.errors import ExitCode, PyunionError
from pyunion.mountinfo import Mounted

FSTYPE = "fuse.pyunion"
_PATIENCE_S = 15.0


def union_at(given: str) -> Mounted:
    """The union that is mounted on a path, the topmost of several. Raises PyunionError."""
    mount = mountinfo.topmost_at(os.path.realpath(os.fsencode(given)))
    if mount is None or mount.fstype != FSTYPE:
        raise PyunionError(f"no union is mounted on {given}; `pyunion status` lists the mounted ones", ExitCode.MOUNT)
    return mount


def daemon_of(mount: Mounted) -> tuple[int, dict[str, Any]]:
    """The process that serves a union, and what it publishes. Raises PyunionError."""
    point = os.fsdecode(mount.point)
    pid = users.daemon_of(mount)
    try:
        published = None if pid is None else board.read(pid)
    except OSError:
        published = None
    if pid is None or published is None:
        why = "has ended" if os.geteuid() == 0 else "has ended or is another user's: try it as root"
        raise PyunionError(f"the daemon of {point} {why}; `pyunion umount {point}` clears a dead mount", ExitCode.MOUNT)
    if "daemon" not in published:
        raise PyunionError(f"the daemon of {point} (process {pid}) is too old to be asked; mount it again")
    return pid, published


class Connection:
    """A conversation with the daemon of one mount; a context manager."""

    def __init__(self, mount: Mounted, patience_s: float | None = None) -> None:
        """`patience_s` is for each answer, where it may take longer than others."""
        self._patience_s = _PATIENCE_S if patience_s is None else patience_s
        self._point = os.fsdecode(mount.point)
        pid, published = daemon_of(mount)
        try:
            self._socket = address.connect(pid, published["daemon"]["control"], self._patience_s)
        except OSError as error:
            why = "it does not answer" if isinstance(error, BlockingIOError) else error.strerror
            raise PyunionError(f"cannot reach the daemon of {self._point} (process {pid}): {why}") from None
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lines.close()
        self._socket.close()

    def ask(self, do: str, **more: object) -> Any:
        """The daemon's answer. Raises PyunionError with the daemon's sentence, or why there is none."""
        with contextlib.suppress(OSError):  # closed after a refusal, which is to be read now
            self._socket.sendall(json.dumps({"do": do, **more}).encode("ascii") + b"\n")
        try:
            line = self._lines.readline()
        except OSError as error:
            silent = isinstance(error, TimeoutError)
            why = f"has not answered for {self._patience_s:.0f} s" if silent else error.strerror
            raise PyunionError(f"the daemon of {self._point}: {why}; its log may say more") from None
        if not line.endswith(b"\n"):
            raise PyunionError(f"the daemon of {self._point} has ended")
        answer = json.loads(line)
        if "error" in answer:
            if "code" in answer:
                raise PyunionError(answer["error"], ExitCode(answer["code"]))
            raise PyunionError(f"the daemon of {self._point} refused: {answer['error']}")
        return answer["ok"]
