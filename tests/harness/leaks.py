"""The watch over what a test session leaves behind: mounts below its scratch directories, and daemons.

Everything is recognised by the scratch directory's name, which no other program uses.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from tests.harness import warm
from tests.harness.mounts import PATIENCE, mounted
from tests.harness.ready import readable

_PREFIX = f"pyunion-test-{os.getpid()}-"


def make_scratch(where: Path | None = None) -> Path:
    """A new directory that every user may pass through (tests become other users)."""
    path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=where))
    path.chmod(0o755)
    return path


def remove_scratch(path: Path) -> None:
    """Remove a scratch directory, and never by accident what is mounted below it."""
    inside = [os.fsdecode(mount.point) for mount in mounted() if mount.point.startswith(os.fsencode(path))]
    if not inside:
        shutil.rmtree(path)


def leaked() -> list[str]:
    """A sentence for each mount and each daemon of this session that is still there."""
    marker = _PREFIX.encode()
    found = [
        f"still mounted: {os.fsdecode(mount.point)} ({mount.fstype})" for mount in mounted() if marker in mount.point
    ]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if b"pyunion" in command.split(b"\0") and marker in command:
                said = command.replace(b"\0", b" ").decode(errors="replace")
                found.append(f"still running: pid {process.name}: {said}")
    return found + [f"still running: pid {pid}: pyunion" for pid in warm.still_running()]


def await_end(pid: int) -> bool:
    """Whether a process, which need not be a child of ours, ends by itself."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(readable(fd, seconds=PATIENCE))
    finally:
        os.close(fd)


def clear_leaks() -> None:
    """Let a failed session not be the next one's trouble."""
    marker = _PREFIX.encode()
    for mount in reversed(mounted()):
        if marker in mount.point:
            subprocess.run(["umount", "--lazy", mount.point], capture_output=True)
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marker in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
    for pid in warm.still_running():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
