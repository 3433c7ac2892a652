"""Leaving for the background: the caller learns how it went, and nothing holds on to it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from pyunion.errors import ExitCode
from tests.cli.command import clean_environment
from tests.harness.mounts import PATIENCE

# A caller whose child runs `{body}`; it prints what it is told, as the command line does.
_CALLER = """
import json, os, signal, socket, sys
from pyunion import background
from pyunion.errors import ExitCode, PyunionError

def serve(ready):
{body}

try:
    background.run(serve)
except PyunionError as error:
    print(error)
    sys.exit(error.exit_code)
print("ready")
"""


def _call(body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    return subprocess.run(
        [sys.executable, "-c", _CALLER.format(body=indented), *arguments],
        env=clean_environment(),
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
    )


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("ready()", 0, "ready"),
        ("ready(); raise PyunionError('too late to tell')", 0, "ready"),
        ("raise PyunionError('it is\\nin use', ExitCode.BUSY)", ExitCode.BUSY, "it is\nin use"),
        ("os._exit(7)", 1, "the daemon ended with status 7 before the mount was ready; --foreground shows its log"),
        ("return", 1, "the daemon ended with status 0 before the mount was ready; --foreground shows its log"),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            1,
            "the daemon was killed by SIGKILL before the mount was ready; --foreground shows its log",
        ),
    ],
)
def test_what_the_caller_learns(body: str, status: int, said: str) -> None:
    done = _call(body)
    assert (done.returncode, done.stdout, done.stderr) == (status, said + "\n", "")


def test_a_bug_shows_its_traceback() -> None:
    done = _call("1 / 0")
    assert done.returncode == ExitCode.FAILURE
    assert "internal error: ZeroDivisionError" in done.stdout
    assert "Traceback" in done.stderr


def test_what_the_child_keeps(tmp_path: Path) -> None:
    body = (
        "complain = os.readlink('/proc/self/fd/2').startswith('pipe:')\n"
        "ready()\n"
        "fds = {fd: os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd') if fd != '3'}\n"
        "state = [complain, fds, os.getcwd(), os.getsid(0) == os.getpid()]\n"
        "with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:\n"
        "    connection.sendto(json.dumps(state).encode(), sys.argv[1])\n"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "state"))
        listener.settimeout(PATIENCE)
        # the child is alive until it has sent its state, and yet the caller's pipes are closed
        assert _call(body, str(tmp_path / "state")).stdout == "ready\n"
        state = json.loads(listener.recv(4096))
    assert state == [True, dict.fromkeys("012", "/dev/null"), "/", True]


def test_a_caller_without_stdio() -> None:
    code = _CALLER.format(body="    ready()").replace("print(", "str(")
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], env=clean_environment(), timeout=PATIENCE
    )
    assert done.returncode == 0
