"""From the shell into the background: the command returns when the daemon is ready, or says why it is not.

Owns the fork and the pipe by which the child reports once: an exit code, a newline and a sentence. Knows nothing of
mounts; what the child does is a function that is handed in.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from pyunion.errors import ExitCode, PyunionError
from pyunion.interrupts import put_off

log = logging.getLogger(__name__)

Serve = Callable[[Callable[[], None]], object]


def run(serve: Serve) -> int:
    """Run `serve(ready)` in a child, and return the child's number when it has called ready().

    Raises PyunionError with the child's own sentence when it failed before that.
    """
    _fill_stdio()
    receiver, sender = os.pipe()
    child = 0
    try:
        with put_off() as let_in:
            child = os.fork()
            if child == 0:
                _be_child(serve, sender)
            os.close(sender)
            with let_in():
                _await_report(receiver, child)
    except KeyboardInterrupt:
        _end(child)
        raise
    finally:
        os.close(receiver)
    return child


def _end(child: int) -> None:
    """What was not ready is gone when we are, the mount too; unless Ctrl-C is pressed once more."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has ended, and was waited for
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)


def _await_report(receiver: int, child: int) -> None:
    report = b""
    while chunk := os.read(receiver, 4096):
        report += chunk
    code, newline, sentence = report.partition(b"\n")
    if not newline:
        raise PyunionError(f"the daemon {_fate(child)} before the mount was ready; --foreground shows its log")
    if int(code) != ExitCode.OK:
        os.waitpid(child, 0)
        raise PyunionError(os.fsdecode(sentence), ExitCode(int(code)))


def _fate(child: int) -> str:
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


def _be_child(serve: Serve, sender: int) -> NoReturn:
    """The child never returns into its caller's code: it may be anybody's."""
    code = ExitCode.FAILURE
    reporting = True

    def report(exit_code: ExitCode, sentence: str) -> None:
        nonlocal reporting
        reporting = False
        _write_all(sender, b"%d\n%b" % (exit_code, os.fsencode(sentence)))
        os.close(sender)

    def ready() -> None:
        os.setsid()
        _leave_stdio()
        try:
            report(ExitCode.OK, "")
        except BrokenPipeError:  # whoever wanted the mount was killed meanwhile
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        _leave_caller(sender)
        serve(ready)
        code = ExitCode.OK
    except PyunionError as error:
        code = error.exit_code
        if reporting:
            report(code, str(error))
        else:
            log.error("%s", error)
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED  # which the caller knows
    except BaseException as error:
        if reporting:
            traceback.print_exc()
            report(code, f"internal error: {error!r}; this is a bug in pyunion")
        else:
            log.critical("the daemon ends by an error that nobody expected", exc_info=True)
    finally:
        logging.shutdown()
        os._exit(code)


def _leave_caller(sender: int) -> None:
    """Keep nothing of the caller's but stdout and stderr, which are for complaints until we are ready, and until then
    the process group: who mounts what an automount waits for is known to the kernel by that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, who tells us
    os.chdir("/")
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd != sender:
            with contextlib.suppress(OSError):  # the listing's own descriptor is gone already
                os.close(fd)
    _point_at_null(0)


def _fill_stdio() -> None:
    """Descriptors 0 to 2 exist, so that the pipe is none of them; nothing is buffered that the fork would double."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # None when the caller had closed it
            stream.flush()


def _leave_stdio() -> None:
    """A caller that reads our output to its end must get one."""
    _point_at_null(1)
    _point_at_null(2)


def _point_at_null(fd: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, fd)
    if null != fd:
        os.close(null)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
