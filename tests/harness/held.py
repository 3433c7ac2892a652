"""A branch that keeps requests waiting, or dies; and clients, processes that make one call each."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.harness.files import outcome
from tests.harness.mounts import PATIENCE, REPOSITORY
from tests.harness.ready import readable


class HeldBranch:
    """`at` shows what is in `source`."""

    def __init__(self, at: Path, source: Path) -> None:
        self.at = at
        self.source = source
        for path in (at, source):
            path.mkdir()
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.harness.held_file_system", at, source],
            cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        assert self._server.stdout is not None
        self._output = self._server.stdout.fileno()
        self._said = b""
        self._held: list[str] = []  # requests that were told of while something else was awaited
        self.request = ""  # the one that await_request() has told of last, by the name of its handler
        self._await("mounted")

    def _await(self, start: str) -> str:
        """The next line that begins so."""
        while True:
            while b"\n" not in self._said:
                assert readable(self._output, seconds=PATIENCE), f"{start!r} does not come"
                self._receive()
            line, _, self._said = self._said.partition(b"\n")
            if line.startswith(start.encode()):
                return line.decode()
            if line.startswith(b"held"):
                self._held.append(line.decode())

    def _receive(self) -> None:
        more = os.read(self._output, 4096)
        assert more, "the file system has ended"
        self._said += more

    def _tell(self, word: str) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(word.encode() + b"\n")
        self._await(word)

    def hold(self) -> None:
        """From now on nothing is answered."""
        self._tell("hold")

    def await_request(self, client: Client | None = None) -> bool:
        """Until a request has to wait; False if the client has ended before that."""
        while not self._held and b"held" not in self._said:
            ready = readable(self._output, *([client.death] if client else []), seconds=PATIENCE)
            assert ready, "neither does a request wait nor does the client end"
            if self._output not in ready:
                return False
            self._receive()
        self.request = (self._held.pop(0) if self._held else self._await("held")).removeprefix("held ")
        return True

    def next(self) -> None:
        """Let the request go on that has waited for longest."""
        self._tell("next")

    def go(self) -> None:
        """From now on everything is answered, what waits as well; unless it is dead."""
        if self._server.poll() is None:
            self._tell("go")
            self._held.clear()

    def die(self) -> None:
        self._server.kill()
        self._server.wait(PATIENCE)

    def stop(self) -> None:
        self.go()
        subprocess.run(["umount", self.at], check=True)
        self.die()  # there is nothing that it could lose
        for pipe in (self._server.stdin, self._server.stdout):
            assert pipe is not None
            pipe.close()


class Client:
    """A process that makes a call, and what that gave: its result, or the name of an errno."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                with os.fdopen(writer, "wb") as pipe:
                    pickle.dump(_result(call), pipe)
                code = 0
            finally:
                os._exit(code)
        os.close(writer)
        self.death = os.pidfd_open(self.pid)  # readable when it has ended

    def await_result(self) -> Any:
        """Raises AssertionError where it does not end."""
        self.await_end()
        return pickle.loads(self._said)

    def is_waiting(self) -> bool:
        return not readable(self.death, seconds=0)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def await_end(self, patience: float = PATIENCE) -> None:
        assert readable(self.death, seconds=patience), "the client has no answer"
        os.close(self.death)
        os.waitpid(self.pid, 0)
        with os.fdopen(self._reader, "rb") as pipe:
            self._said = pipe.read()


def _result(call: Callable[[], Any]) -> Any:
    results: list[Any] = []
    said = outcome(lambda: results.append(call()))
    return results[0] if results else said
