"""pyunion without the start of a Python: a process that has imported all of it forks for each command.

A start costs more than most of what is tested, and the tests make thousands. What runs here is the command line from
main() to the end of its interpreter, with arguments, environment, directory, limit of descriptors and standard streams
of its own. How a process comes to main() is for the tests of the command line, of mount(8), podman and the service,
which start it as their users do.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import pkgutil
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.harness.ready import readable

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 60.0  # seconds until a process that neither answers nor dies is a failure
_MOST = 1 << 18  # bytes of a request: the environment is the most of it
_STARTS = ("pyunion.cli", "pyunion.daemon")  # and all commands
PYTHON_IS_TOLD = {"PYTHONFAULTHANDLER": "1", "PYTHONWARNINGS": "error"}


class Process:
    """A command that was started, as subprocess.Popen has them."""

    def __init__(
        self, words: Sequence[str], cwd: Path, environment: Mapping[str, str], stdout: IO[bytes], stderr: IO[bytes]
    ) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        request = {"words": words, "cwd": str(cwd), "environment": dict(environment), "limit": limit}
        with open(os.devnull, "rb") as stdin:
            self.pid: int = _ask(request, [stdin.fileno(), stdout.fileno(), stderr.fileno()])

    def wait(self, timeout: float) -> int:
        death = os.pidfd_open(self.pid)
        try:
            if not readable(death, seconds=timeout):
                raise subprocess.TimeoutExpired("pyunion", timeout)
        finally:
            os.close(death)
        return os.waitstatus_to_exitcode(_ask({"wait": self.pid}))

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def pyunion(*arguments: str | Path, cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    kept = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    words = list(map(str, arguments))
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = Process(words, cwd, kept | environment, out, err)
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(PATIENCE)
            raise
        return subprocess.CompletedProcess(words, code, _said(out), _said(err))


def _said(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode()


def _ask(request: dict[str, Any], fds: Sequence[int] = ()) -> int:
    channel, _ = _server()
    socket.send_fds(channel, [json.dumps(request).encode()], fds)
    answer = channel.recv(_MOST)
    assert answer, "the process that forks has ended"
    return int(answer)


@functools.cache
def _server() -> tuple[socket.socket, int]:
    """The process that forks, which ends with us: what it is asked by, and its number. A signal to all of us, as by
    Ctrl-C, does not come to it: whoever is interrupted still has mounts to take down."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server = subprocess.Popen(
            [sys.executable, *_words()],
            cwd=REPOSITORY, env=os.environ | PYTHON_IS_TOLD, stdin=theirs.fileno(), stdout=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    atexit.register(server.wait)
    atexit.register(ours.close)
    return ours, server.pid


def _words() -> list[str]:
    """Of its command line, and so of that of all who come from it. Our number says whose they are."""
    return ["-m", "tests.harness.warm", str(os.getpid())]


def still_running() -> Iterator[int]:
    """Who was forked for us and has not ended, daemons in the background too."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if words[1:-1] == list(map(os.fsencode, _words())) and int(process.name) != _server()[1]:
                yield int(process.name)


def _import_all() -> None:
    for name in _STARTS:
        importlib.import_module(name)
    commands = importlib.import_module("pyunion.commands")
    for module in pkgutil.iter_modules(commands.__path__, "pyunion.commands."):
        importlib.import_module(module.name)
    # What is there now is there for ever: nobody need look through it for garbage, and copy its pages by that.
    gc.collect()
    gc.freeze()


def _serve(channel: socket.socket) -> list[str] | None:
    """Until the other end is closed; but in each process that is forked here, the words of its command."""
    while True:
        message, fds, _, _ = socket.recv_fds(channel, _MOST, 3)
        if not message:
            return None
        request = json.loads(message)
        if "wait" in request:
            answer = os.waitpid(request["wait"], 0)[1]
        elif (answer := os.fork()) == 0:
            channel.close()
            _become(request, fds)
            return list(request["words"])
        for fd in fds:
            os.close(fd)
        channel.send(b"%d" % answer)


def _become(request: dict[str, Any], fds: Sequence[int]) -> None:
    for target, fd in enumerate(fds):
        os.dup2(fd, target)
        os.close(fd)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    resource.setrlimit(resource.RLIMIT_NOFILE, request["limit"])
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who interrupts the tests wants them to clear up with our help
    _import_all()
    with socket.socket(fileno=os.dup(0)) as channel:
        words = _serve(channel)
    if words is None:
        return 0
    cli = importlib.import_module("pyunion.cli")
    sys.argv[1:] = words
    return int(cli.main())


if __name__ == "__main__":
    sys.exit(_main())
