"""The control socket: who is answered, and that no client can hurt the mount."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pyunion import board
from pyunion.control import address
from pyunion.control.server import LONGEST_LINE, MOST_CONNECTIONS
from pyunion.errors import ExitCode
from tests.harness.files import write
from tests.harness.mounts import PATIENCE
from tests.harness.program import copy_program
from tests.harness.ready import until
from tests.harness.union import Union
from tests.harness.warm import pyunion as run_pyunion
from tests.operate.conftest import told

_NOBODY = 1000
_ASK_DESCRIPTOR = (
    "import socket, sys\n"
    "s = socket.socket(socket.AF_UNIX)\n"
    "s.connect(f'/proc/self/fd/{sys.argv[1]}')\n"
    "sys.stdout.buffer.write(s.makefile('rb').read())\n"
)


def _published(union: Union) -> Any:
    said = board.read(union.daemon.pid)
    assert said is not None
    return said["daemon"]["control"]


def _connect(union: Union) -> socket.socket:
    return address.connect(union.daemon.pid, _published(union), PATIENCE)


def _exchange(connection: socket.socket, data: bytes) -> dict[str, Any]:
    connection.sendall(data)
    line = b""
    while not line.endswith(b"\n"):
        more = connection.recv(65536)
        assert more, f"no answer to {data[:100]!r}, but {line!r}"
        line += more
    return dict(json.loads(line))


def _as_nobody(*command: str | Path, pass_fd: int | None = None, path: Path | None = None) -> Any:
    return subprocess.run(
        ["setpriv", "--reuid", str(_NOBODY), "--regid", str(_NOBODY), "--clear-groups", *command],
        capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL,
        pass_fds=() if pass_fd is None else (pass_fd,),
        env={**os.environ, **({} if path is None else {"PYTHONPATH": str(path)})},
    )  # fmt: skip


def _assert_answers(union: Union) -> None:
    """The mount, and its control socket."""
    union.at.joinpath("probe").write_text("x")
    assert (union.at / "file").read_text() == "lower"
    union.at.joinpath("probe").unlink()
    assert told("status", union.at)["pid"] == union.daemon.pid


@pytest.fixture
def union(pyunion: Union) -> Union:
    write(pyunion.low / "file", "lower")
    pyunion.mount()
    return pyunion


# -- who ----------------------------------------------------------------------------------------------------------


def test_another_user_is_told_that_the_mount_is_not_his(union: Union) -> None:
    program = copy_program(union.base / "program").split()
    done = _as_nobody(*program, "status", union.at, path=union.base / "program")
    assert done.returncode == ExitCode.MOUNT
    assert done.stderr == (
        f"pyunion: the daemon of {union.at} has ended or is another user's: try it as root; "
        f"`pyunion umount {union.at}` clears a dead mount\n"
    )
    for command in ("which {}/file", "tree {}", "log-level {} debug", "top {}"):
        words = command.format(union.at).split()
        assert _as_nobody(*program, *words, path=union.base / "program").returncode == ExitCode.MOUNT
    assert told("status", union.at)["log_level"] == "info"


def test_the_kernel_lets_nobody_else_connect(union: Union) -> None:
    """Not even with a descriptor of the socket, which somebody has handed on."""
    fd = os.open(f"/proc/{union.daemon.pid}/fd/{_published(union)}", os.O_PATH)
    try:
        done = _as_nobody(sys.executable, "-c", _ASK_DESCRIPTOR, str(fd), pass_fd=fd)
    finally:
        os.close(fd)
    assert "PermissionError" in done.stderr


def test_whoever_connects_all_the_same_is_refused(union: Union) -> None:
    path = f"/proc/{union.daemon.pid}/fd/{_published(union)}"
    os.chmod(path, 0o666)
    fd = os.open(path, os.O_PATH)
    try:
        done = _as_nobody(sys.executable, "-c", _ASK_DESCRIPTOR, str(fd), pass_fd=fd)
    finally:
        os.close(fd)
    refused = f"only root and user 0, whose mount this is, are answered, and not user {_NOBODY}"
    assert json.loads(done.stdout) == {"error": refused}


# -- what ---------------------------------------------------------------------------------------------------------


_GARBAGE = [b"", b"\0\xff\xfe", b"status", b"{", b"[1]", b"17", b"null", b'{"do": [1]}', b'{"do": "stop"}', b"[" * 4000]
_NO_VALUES = [
    *('"log-level", "level": "loud"', '"log-level", "level": [1]'),
    *('"sample"', '"sample", "most": 1e9', '"sample", "most": -1'),
]


@pytest.mark.parametrize("line", _GARBAGE)
def test_garbage_is_refused_and_the_conversation_goes_on(union: Union, line: bytes) -> None:
    with _connect(union) as connection:
        assert set(_exchange(connection, line + b"\n")) == {"error"}
        assert _exchange(connection, b'{"do": "status"}\n')["ok"]["pid"] == union.daemon.pid


@pytest.mark.parametrize("asked", _NO_VALUES)
def test_values_that_are_none_are_refused(union: Union, asked: str) -> None:
    with _connect(union) as connection:
        assert set(_exchange(connection, b'{"do": ' + asked.encode() + b"}\n")) == {"error"}
    assert told("status", union.at)["log_level"] == "info"


def test_a_line_without_end(union: Union) -> None:
    with _connect(union) as connection:
        with pytest.raises(OSError, match=r"Broken pipe|reset"):  # the daemon hangs up long before the end
            connection.sendall(b"x" * (1 << 20))
        assert json.loads(connection.makefile().readline()) == {"error": f"a line has {LONGEST_LINE} bytes at most"}
    _assert_answers(union)


def test_a_line_may_come_in_pieces_and_two_at_once(union: Union) -> None:
    with _connect(union) as connection:
        connection.sendall(b'{"do": "log')
        assert _exchange(connection, b'-level"}\n') == {"ok": {"level": "info"}}
        connection.sendall(b'{"do": "log-level"}\n' * 2)
        lines = connection.makefile()
        assert [json.loads(lines.readline()) for _ in range(2)] == [{"ok": {"level": "info"}}] * 2


def test_a_client_that_never_reads(union: Union) -> None:
    """It is hung up on, and nobody waits for it meanwhile."""
    with _connect(union) as connection:
        asking = threading.Thread(target=_ask_without_end, args=(connection,))
        asking.start()
        before = _memory(union)
        _assert_answers(union)
        asking.join(PATIENCE)
        assert not asking.is_alive(), "the daemon takes more and more"
        assert _memory(union) < before + (8 << 20)
    _assert_answers(union)


def _ask_without_end(connection: socket.socket) -> None:
    try:
        while True:
            connection.sendall(b'{"do": "status"}\n' * 100)
    except OSError:
        pass


def _memory(union: Union) -> int:
    """Bytes."""
    lines = Path(f"/proc/{union.daemon.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) << 10


def test_hundreds_of_connections(union: Union) -> None:
    before = union.daemon.descriptors()
    with ExitStack() as stack:
        connections = [stack.enter_context(_connect(union)) for _ in range(300)]
        (union.at / "new").write_text("x")
        assert (union.at / "file").read_text() == "lower"
        # those that are one too many have been told so, and hung up on
        refused = 0
        for connection in connections[MOST_CONNECTIONS:]:
            said = connection.recv(4096)
            assert b"control connections already" in said
            refused += 1
        assert refused == 300 - MOST_CONNECTIONS
        assert union.daemon.descriptors() <= before + MOST_CONNECTIONS + 10
        assert _exchange(connections[0], b'{"do": "log-level"}\n') == {"ok": {"level": "info"}}
    _assert_answers(union)


def test_clients_that_leave_in_the_middle(union: Union) -> None:
    """Not so many at a time that some are hung up on: that may be before they have said anything."""
    few = 2
    before = union.daemon.descriptors()
    for data in (b"", b'{"do": "sta', b'{"do": "status"}\n', b'{"do": "sample", "most": 1}\n'):
        for _ in range(2):
            for _ in range(MOST_CONNECTIONS - few):
                with _connect(union) as connection:
                    connection.sendall(data)
            until(
                lambda: union.daemon.descriptors() <= before + few,
                "clients that have left keep their connections",
                PATIENCE,
            )
    _assert_answers(union)
    with _connect(union) as connection:
        assert _exchange(connection, b'{"do": "status"}\n')["ok"]["descriptors"] <= before + few


def test_unmounting_ends_the_connections(union: Union) -> None:
    with _connect(union) as connection:
        union.unmount()
        assert connection.recv(100) == b""


# -- the log level ------------------------------------------------------------------------------------------------


def test_the_log_level_changes_at_run_time(union: Union) -> None:
    def level(*more: str) -> str:
        done = run_pyunion("log-level", union.at, *more)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert level() == "info\n"
    assert level("error") == ""
    quiet = union.daemon.log()
    assert level("warning") == ""
    assert level() == "warning\n"
    assert union.daemon.log() == quiet
    assert level("debug") == ""
    assert "the log level is debug" in union.daemon.log().removeprefix(quiet)
    assert told("status", union.at)["log_level"] == "debug"


def test_a_remount_changes_it_too(union: Union) -> None:
    assert run_pyunion("log-level", union.at, "debug").returncode == 0
    assert run_pyunion("mount", "-o", "remount", "--log-level", "warning", union.at).returncode == 0
    assert run_pyunion("log-level", union.at).stdout == "warning\n"
    assert run_pyunion("mount", "-o", "remount", union.at).returncode == 0
    assert run_pyunion("log-level", union.at).stdout == "warning\n"


def test_an_unknown_log_level(union: Union) -> None:
    done = run_pyunion("log-level", union.at, "loud")
    assert done.returncode == ExitCode.USAGE
    assert "invalid choice: 'loud'" in done.stderr
