"""The service manager gets exactly what was sent, by either kind of socket address."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pyunion import notify


def _listener(address: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    listener.bind(address)
    return listener


def test_socket_in_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with _listener(str(tmp_path / "notify")) as listener:
        assert notify.wanted()
        assert notify.send("READY=1", "STATUS=mounted")
        assert listener.recv(100) == b"READY=1\nSTATUS=mounted"


def test_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"pyunion-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with _listener(f"\0{name}") as listener:
        assert notify.send("STOPPING=1")
        assert listener.recv(100) == b"STOPPING=1"


def test_a_name_is_no_assignment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of files are their users', and what is sent here comes from root."""
    name = f"pyunion-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with _listener(f"\0{name}") as listener:
        notify.ServiceManager("/mnt").busy(os.fsdecode(b"/mnt is busy: a\nMAINPID=1\xff"))
        assert listener.recv(100) == rb"STATUS=/mnt is busy: a\nMAINPID=1\xff"


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not notify.send("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    assert not notify.wanted()
    assert not notify.send("READY=1")
