"""A terminal, and somebody who presses Ctrl-C at it while a command of pyunion makes one of its system calls.

The command is what a shell's job is: the foreground group of a session whose first process waits for it. So the signal
comes from the terminal's line discipline, to all of the group.
"""

from __future__ import annotations

import os
import pty
import signal
import socket
import sys
import termios
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from tests.harness.mounts import PATIENCE
from trials.supervised import Watched, become_watched

_CTRL_C, _ECHO = b"\x03", b"^C"
_ON_AND_OFF = ((b"\x1b[?25l", b"\x1b[?25h"), (b"\x1b[?1049h", b"\x1b[?1049l"))  # hidden cursor, second screen


class Terminal:
    """`said` is all that was written to it, with what it echoes."""

    def __init__(self) -> None:
        self._here, there = pty.openpty()
        self.path = os.ttyname(there)
        self._there = there
        self.said = b""
        self._is_closed = False
        self._more = threading.Condition()
        self._before = termios.tcgetattr(there)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                chunk = os.read(self._here, 1 << 16)
            except OSError:  # EIO: nobody has it open any more
                chunk = b""
            with self._more:
                self.said += chunk
                self._more.notify_all()
            if not chunk:
                return

    def press_ctrl_c(self) -> None:
        """Returns when the signal has been sent, as the echo comes after that."""
        with self._more:
            if self._is_closed:
                return
            seen = self.said.count(_ECHO)
            os.write(self._here, _CTRL_C)
            assert self._more.wait_for(lambda: self.said.count(_ECHO) > seen, PATIENCE), "the terminal does not answer"

    def await_text(self, text: str) -> None:
        with self._more:
            assert self._more.wait_for(lambda: text.encode() in self.said, PATIENCE), self.said

    def close(self) -> str:
        """What was said; it has to be left as it was found."""
        with self._more:
            self._is_closed = True
        after = termios.tcgetattr(self._here)
        os.close(self._there)
        self._reader.join(PATIENCE)
        os.close(self._here)
        assert after == self._before, "the settings of the terminal are others than before"
        for on, off in _ON_AND_OFF:
            assert self.said.rfind(on) <= self.said.rfind(off), self.said
        return self.said.decode(errors="replace")


class Job(Watched):
    """A command that was started by a shell with a terminal."""

    def __init__(self, words: Sequence[str | Path], at: Sequence[int] = ()) -> None:
        """Before its system calls of these numbers are made, Ctrl-C is pressed."""
        super().__init__()
        self.terminal = Terminal()
        self._presses = sorted(at)
        self.arm(self._next(), self._press, answers=True)
        self._fork(lambda supervisor: _be_shell(list(map(str, words)), self.terminal.path, supervisor))

    def _next(self) -> int:
        return self._presses.pop(0) if self._presses else 0

    def _press(self) -> int:
        self._at = self._next()
        self.terminal.press_ctrl_c()
        return 0

    def await_end(self) -> tuple[int, str]:
        """Its exit status, or minus a signal, and what the terminal shows."""
        status = self._await_exit()
        return status, self.terminal.close()

    def all_have_ended(self) -> bool:
        """Whether nobody who was forked for the command is left."""
        assert self._thread is not None
        self._thread.join(PATIENCE)
        return not self._thread.is_alive()


def _be_shell(words: list[str], terminal: str, supervisor: socket.socket) -> NoReturn:
    """The first process of a session, to which the terminal belongs from then on. It ends as its job does."""
    os.setsid()
    for fd in range(3):
        os.close(fd)
        assert os.open(terminal, os.O_RDWR) == fd
    job = os.fork()
    if job == 0:
        _be_job(words, supervisor)
    supervisor.close()
    status = os.waitstatus_to_exitcode(os.waitpid(job, 0)[1])
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def _be_job(words: list[str], supervisor: socket.socket) -> NoReturn:
    os.setpgid(0, 0)
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, before)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # As users have it, and not the tests: what an interrupted open(2) leaves is closed in silence.
    sys.unraisablehook = sys.__unraisablehook__
    warnings.simplefilter("ignore", ResourceWarning)
    become_watched(words, supervisor)

