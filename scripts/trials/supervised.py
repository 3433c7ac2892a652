"""A process that stops before each of its system calls on branches, and learns there whether to go on, fail or die.

By seccomp_unotify(2): its filter asks this process, which counts. That costs microseconds a call, needs no
debugger, and leaves all other system calls alone. Knows nothing of what the calls are made for.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import logging
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from pyunion import cli, daemon, preflight
from pyunion.commands import mount
from pyunion.fuse import wire
from tests.harness.mounts import PATIENCE, Layers, Mount, PyunionMount
from tests.harness.old_system import forbid, numbers, rules

# What is done to branches; close(2) is not among them, as its errors leave nothing to be done.
CALLS = """
    open openat openat2 open_by_handle_at name_to_handle_at stat lstat fstat newfstatat statx faccessat faccessat2
    getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr setxattr lsetxattr fsetxattr removexattr
    lremovexattr fremovexattr mkdir mkdirat mknod mknodat link linkat symlink symlinkat unlink unlinkat rmdir
    rename renameat renameat2 chmod fchmod fchmodat fchmodat2 chown lchown fchown fchownat utimensat truncate
    ftruncate fallocate fsync fdatasync sync_file_range copy_file_range sendfile pwrite64 pread64 preadv2 lseek ioctl
    dup2 dup3 getdents64 readlink readlinkat fstatfs statfs
""".split()  # noqa: SIM905 - a word each, as strace(1) would have them
ANSWERS = ("write", "writev")  # to the kernel's requests: after the last call on a branch comes one of these

_FILTER, _NEW_LISTENER = 1, 8  # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER
_WAIT_KILLABLE = 32  # SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (Linux 5.19): no signal interrupts a call that is stopped
_ALLOW, _ASK = 0x7FFF0000, 0x7FC00000
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
_INSTRUCTION = struct.Struct("=HBBI")
_RECV, _SEND = 0xC0502100, 0xC0182101
_QUESTION, _ANSWER = struct.Struct("=QII iI Q6Q"), struct.Struct("=QqiI")
_CONTINUE = 1
_FAILED = 70  # the exit status of who has not come as far as its command
# What becomes of a call: the errno that it fails with; 0: it is made; None: it never returns.
Action = Callable[[], "int | None"]
_libc = ctypes.CDLL(None, use_errno=True)
_IMPORTED = (daemon, mount, preflight)  # by this process, so that no daemon has to


@functools.cache
def _names() -> dict[int, str]:
    return {numbers()[name]: name for name in (*CALLS, *ANSWERS) if name in numbers()}


def _install_filter() -> int:
    """Let the system calls of this process ask; returns the descriptor that they are answered by."""
    wanted = list(_names())
    program = [(_LOAD, 0, 0, 0)]
    program += [(_EQUAL, len(wanted) - at, 0, number) for at, number in enumerate(wanted)]
    program += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ASK)]
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*line) for line in program))
    head = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    fd: int = _libc.syscall(numbers()["seccomp"], _FILTER, _NEW_LISTENER | _WAIT_KILLABLE, head)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "seccomp(2)")
    return fd


class Watched:
    """A process whose system calls on branches are counted after arm(); `calls` are their names, of all threads in
    their order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._pid = 0
        self._at = 0
        self._action: Action = lambda: 0
        self._answers = self._counts = False
        self._thread: threading.Thread | None = None

    @property
    def pid(self) -> int:
        return self._pid

    def arm(self, at: int, action: Action, *, answers: bool) -> None:
        """From now on count. Before the call of that number, from 1, is made, the action says what becomes of it.
        With `answers`, those to the kernel's requests count as well."""
        self.calls = []
        self._at, self._action, self._answers = at, action, answers
        self._counts = True

    def die(self) -> None:
        """An action: the process is killed."""
        os.kill(self._pid, signal.SIGKILL)

    def disarm(self) -> list[str]:
        """The names of the calls since arm()."""
        self._counts = False
        return self.calls

    def _fork(self, become: Callable[[socket.socket], None]) -> None:
        """Fork; `become` sends the descriptor of its filter by the socket that it gets, and never returns."""
        _names()  # before the fork: it runs a program
        ours, theirs = socket.socketpair()
        with ours, theirs:
            self._pid = os.fork()
            if self._pid == 0:
                become(theirs)
            (listener,) = socket.recv_fds(ours, 1, 1)[1]
        self._thread = threading.Thread(target=self._supervise, args=(listener,), daemon=True)
        self._thread.start()

    def _reap(self) -> int:
        code = self._await_exit()
        if self._thread is not None:
            self._thread.join(PATIENCE)
        return code

    def _await_exit(self) -> int:
        with_pidfd = os.pidfd_open(self._pid)
        try:
            if not select.select([with_pidfd], [], [], PATIENCE)[0]:
                raise subprocess.TimeoutExpired("pyunion", PATIENCE)
        finally:
            os.close(with_pidfd)
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        self._pid = 0
        return code

    # -- the other side of its filter, in a thread ----------------------------------------------------------------

    def _supervise(self, listener: int) -> None:
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        names = _names()
        try:
            while all(not events & select.POLLHUP for _, events in poll.poll()):
                question = bytearray(_QUESTION.size)
                try:
                    fcntl.ioctl(listener, _RECV, question)
                    unique, _, _, number, *_ = _QUESTION.unpack(question)
                    answer = self._decide(names[number])
                    if answer is not None:
                        flags = 0 if answer else _CONTINUE
                        fcntl.ioctl(listener, _SEND, bytearray(_ANSWER.pack(unique, 0, -answer, flags)))
                except FileNotFoundError:
                    continue  # the process, or the call, is gone
        finally:
            os.close(listener)

    def _decide(self, name: str) -> int | None:
        """See Action."""
        if not self._counts or (name in ANSWERS and not self._answers):
            return 0
        self.calls.append(name)
        return self._action() if len(self.calls) == self._at else 0


class Command(Watched):
    """A command of pyunion, forked from this process."""

    def run(self, words: Sequence[str | Path], log: Path, at: int = 0, action: Action | None = None) -> int:
        """Run it to its end, with all that it says in `log`; returns its exit status, or minus a signal. Before the
        call of that number is made, the action says what becomes of it; without one it is killed there."""
        self.arm(at, action or self.die, answers=False)
        self._fork(lambda supervisor: _become(list(map(str, words)), log, supervisor))
        return self._reap()


class Supervised(Watched, PyunionMount):
    """pyunion, forked from this process so that a start takes milliseconds."""

    def __init__(self, point: Path, *, extension: bool = True, missing: Sequence[str] = ()) -> None:
        Watched.__init__(self)
        PyunionMount.__init__(self, point)
        self._rules = rules(missing)  # before the fork: it runs a program
        self._extension = extension

    def says_what_is_left(self) -> bool:
        """Whether the log names what could not be removed from the work directory."""
        return "is left in the work directory" in self.log()

    def _start(self, layers: Layers, options: Sequence[str]) -> None:
        notify_path = self.point.with_name(self.point.name + ".notify")
        words = self._words(layers, options)

        def become(supervisor: socket.socket) -> None:
            if not self._extension:
                wire._wire = None
            _become(words, self.log_path, supervisor, self._rules, NOTIFY_SOCKET=str(notify_path))

        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.bind(os.fspath(notify_path))
            self._fork(become)
            try:
                self._wait_ready(notify)
            finally:
                notify_path.unlink()

    def await_death(self) -> None:
        """After the call that kills it."""
        assert self._reap() == -signal.SIGKILL
        Mount.live.discard(self)

    def _stopped(self) -> None:
        self.disarm()
        if self._pid:
            code = self._reap()
            assert code == 0, f"the daemon ended with {code}; log:\n{self.log()}"

    def abandon(self) -> None:
        self.disarm()
        Mount.live.discard(self)
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
            self._reap()
        subprocess.run(["umount", "--lazy", self.point], capture_output=True)


def _become(
    words: Sequence[str], log: Path, supervisor: socket.socket, rules: Sequence[str] = (), **environment: str
) -> NoReturn:
    """In the new process, which logs there. Never returns."""
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        for fd, target in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (out, 2)):
            os.dup2(fd, target)
        os.environ.update(environment)
        become_watched(words, supervisor, rules)
    finally:
        os._exit(_FAILED)


def become_watched(words: Sequence[str], supervisor: socket.socket, rules: Sequence[str] = ()) -> NoReturn:
    """In a new process that has its standard streams. Never returns."""
    code = _FAILED
    try:
        os.dup2(supervisor.fileno(), 3)
        os.closerange(4, 1 << 16)
        sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
        logging.getLogger().handlers.clear()  # those of this process
        with socket.socket(fileno=3) as channel:
            listener = _install_filter()
            socket.send_fds(channel, [b"x"], [listener])
            os.close(listener)
        if rules:
            forbid(rules)
        code = cli.main(list(words))
    finally:
        os._exit(code)
