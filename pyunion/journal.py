"""The journal of systemd as a place for a log: levels and fields, by the protocol of its socket.

Owns the form of an entry (https://systemd.io/JOURNAL_NATIVE_PROTOCOL). Knows nothing of what is logged, and never
waits: who writes the journal may need the mount that writes to it.
"""

from __future__ import annotations

import logging
import os
import socket
import struct

_SOCKET = "/run/systemd/journal/socket"
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_NOTICE = 5
_SEND_BUFFER = 8 << 20  # as sd_journal_send(3) asks for


def gets_stderr() -> bool:
    """Whether what we write to stderr goes to the journal (JOURNAL_STREAM in systemd.exec(5))."""
    said = os.environ.get("JOURNAL_STREAM", "")
    try:
        st = os.fstat(2)
    except OSError:
        return False
    return said == f"{st.st_dev}:{st.st_ino}"


class JournalHandler(logging.Handler):
    """An entry for each record, with the fields given here in each of them."""

    def __init__(self, **fields: str) -> None:
        super().__init__()
        self._fields = fields
        self._lost = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)

    def close(self) -> None:
        self._socket.close()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        sent = self._send(
            MESSAGE=self.format(record),
            PRIORITY=str(_PRIORITIES.get(record.levelno, _NOTICE)),
            LOGGER=record.name,
            CODE_FILE=record.pathname,
            CODE_LINE=str(record.lineno),
            CODE_FUNC=record.funcName or "",
        )
        if not sent:
            self._lost += 1
        elif self._lost:
            lost, self._lost = self._lost, 0
            self._send(MESSAGE=f"{lost} entries before this one did not fit into the journal", PRIORITY="4")

    def _send(self, **fields: str) -> bool:
        data = b"".join(_field(name, value) for name, value in (self._fields | fields).items())
        try:
            self._socket.sendto(data, _SOCKET)
        except OSError:  # full, or gone for a moment
            return False
        return True


def _field(name: str, value: str) -> bytes:
    data = value.encode(errors="backslashreplace")
    if b"\n" in data:
        return b"%b\n%b%b\n" % (name.encode(), struct.pack("<Q", len(data)), data)
    return b"%b=%b\n" % (name.encode(), data)
