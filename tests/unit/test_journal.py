"""An entry of the journal by the protocol of its socket, and what happens when nobody takes it."""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyunion import journal, logs


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """In the place of the journal's own socket."""
    monkeypatch.setattr(journal, "_SOCKET", str(tmp_path / "socket"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as made:
        made.bind(str(tmp_path / "socket"))
        yield made


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    logger = logging.Logger("some.name")
    handler = journal.JournalHandler(PYUNION_MOUNT="/mnt")
    handler.setFormatter(logs.Printable())
    logger.addHandler(handler)
    yield logger
    handler.close()


def _fields(data: bytes) -> dict[str, str]:
    """NAME=VALUE, or for values of several lines NAME, their length in 64 bits, and they themselves."""
    found = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack("<Q", rest[:8])
            value, newline, rest = rest[8 : 8 + length], rest[8 + length : 9 + length], rest[9 + length :]
            assert newline == b"\n"
        found[name.decode()] = value.decode()
        data = rest
    return found


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, "7"), (logging.INFO, "6"), (logging.WARNING, "4"), (logging.ERROR, "3"), (logging.CRITICAL, "2")],
)
def test_fields(reader: socket.socket, log: logging.Logger, level: int, priority: str) -> None:
    log.log(level, "%s = %s", "a", os.fsdecode(b"b\x1b\xff"))
    fields = _fields(reader.recv(1 << 16))
    line = fields.pop("CODE_LINE")
    assert Path(__file__).read_text().splitlines()[int(line) - 1].strip().startswith("log.log(")
    assert fields == {
        "MESSAGE": r"a = b\x1b\xff",
        "PRIORITY": priority,
        "PYUNION_MOUNT": "/mnt",
        "LOGGER": "some.name",
        "CODE_FILE": __file__,
        "CODE_FUNC": "test_fields",
    }


def test_a_traceback_stays_one_entry(reader: socket.socket, log: logging.Logger) -> None:
    try:
        raise OSError("no")
    except OSError:
        log.exception("it failed")
    lines = _fields(reader.recv(1 << 16))["MESSAGE"].splitlines()
    assert (lines[0], lines[1], lines[-1]) == ("it failed", "Traceback (most recent call last):", "OSError: no")


def test_what_does_not_fit_is_counted_and_nobody_waits(reader: socket.socket, log: logging.Logger) -> None:
    sent = 10_000
    for number in range(sent):
        log.info("%d", number)
    taken = 0
    while True:
        try:
            assert _fields(reader.recv(1 << 16))["MESSAGE"] == str(taken)
        except BlockingIOError:
            break
        taken += 1
    assert 0 < taken < sent
    log.info("again")
    assert _fields(reader.recv(1 << 16))["MESSAGE"] == "again"
    assert _fields(reader.recv(1 << 16))["MESSAGE"].startswith(f"{sent - taken} entries before this one did not fit")


def test_the_journal_gets_stderr_only_if_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    st = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{st.st_dev}:{st.st_ino}")
    assert journal.gets_stderr()
    monkeypatch.setenv("JOURNAL_STREAM", f"{st.st_dev}:{st.st_ino + 1}")
    assert not journal.gets_stderr()
    monkeypatch.delenv("JOURNAL_STREAM")
    assert not journal.gets_stderr()
