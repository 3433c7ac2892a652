"""The processes around a program, and that none of them outlives another.

Owns the order of death. The command that the user has started forks a keeper, the first process of a pid namespace,
which the kernel kills when the command dies (PR_SET_PDEATHSIG). When the keeper dies, however it does, the kernel kills
all that is in the namespace; and with the last process of a mount namespace its mounts are gone. Knows no unions.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence

from pyunion.branch import syscalls
from pyunion.errors import ExitCode, PyunionError, printable

# What is for the program, and is passed on to it.
_PASSED_ON = frozenset(
    {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
)
_WAITED_FOR = _PASSED_ON | {signal.SIGCHLD}
_PATIENCE_S = 10


def block_signals() -> None:
    """None of them interrupts anything from now on; follow() takes them one by one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAITED_FOR)


def unblock_signals() -> None:
    """For the daemon and the program, which handle them themselves; those that the caller had blocked, too."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def told_to_end() -> int | None:
    """The exit status for a signal that has come while they were blocked, before there was a program to take it."""
    told = signal.sigpending() & _PASSED_ON
    return 128 + min(told) if told else None


def spawn(action: Callable[[], int]) -> int:
    """Run something in a child, whose exit status is what it returns, or that of a PyunionError, which is printed."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    child = os.fork()
    if child == 0:
        code: int = ExitCode.FAILURE
        try:
            code = action()
        except PyunionError as error:
            print(f"pyunion: {printable(str(error))}", file=sys.stderr)
            code = error.exit_code
        except BaseException:
            traceback.print_exc()
        finally:
            logging.shutdown()
            sys.stderr.flush()
            os._exit(code)
    return child


def keep(action: Callable[[], int]) -> int:
    """Run something as the first process of a new pid namespace, which ends with us; returns its exit status.

    Raises PyunionError.
    """
    ours, theirs = os.pipe()

    def alive() -> int:
        os.close(theirs)
        syscalls.die_with_parent()
        if select.select([ours], [], [], 0)[0]:  # it was dead already
            return ExitCode.FAILURE
        return action()

    try:
        syscalls.unshare(syscalls.CLONE_NEWPID)
    except OSError as error:
        raise PyunionError(f"cannot make a namespace, which takes CAP_SYS_ADMIN: {error.strerror}") from None
    keeper = spawn(alive)
    os.close(ours)
    try:
        return follow([keeper])[1]
    finally:
        os.close(theirs)


def follow(children: Sequence[int]) -> tuple[int, int]:
    """Wait for one of some children, and pass signals on to the first one meanwhile.

    Returns which it was, and its exit status, which is 128 and the number for a signal. What the terminal sends
    (Ctrl-C) it has sent to all of its group, the program too.
    """
    while True:
        told = signal.sigwaitinfo(_WAITED_FOR)
        if told.si_signo == signal.SIGCHLD:
            for child in children:
                pid, status = os.waitpid(child, os.WNOHANG)
                if pid:
                    return child, _exit_status(status)
        elif told.si_code <= 0:  # SI_USER and others that a process sends (sigaction(2)), and none of the kernel's
            os.kill(children[0], told.si_signo)


def end(child: int) -> int:
    """Let a child end in order; if it does not, without. Returns its exit status as follow() does."""
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        os.kill(child, number)
        while signal.sigtimedwait({signal.SIGCHLD}, _PATIENCE_S):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return _exit_status(status)
    return _exit_status(os.waitpid(child, 0)[1])


def _exit_status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
