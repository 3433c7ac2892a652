"""scripts/reliability itself: whoever stops it finds nothing mounted and nothing running afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.harness.mounts import PATIENCE, REPOSITORY, parse_mountinfo
from tests.harness.ready import until

pytestmark = pytest.mark.usefixtures("_can_mount")
# What is mounted below its directory in the middle of a try, from the first mount to the last.
UNDER_WAY = {
    "killed": ["tmpfs", "fuse.pyunion"],
    "power": ["tmpfs", "xfs", "fuse.pyunion"],
    "clients": ["tmpfs", "fuse.pyunion"],
    "soak": ["tmpfs", "fuse.pyunion"],
}


def mounted_below(process: subprocess.Popen[bytes], directory: Path) -> list[str]:
    """The types, as the process sees them in a mount namespace of its own."""
    lines = parse_mountinfo(Path(f"/proc/{process.pid}/mountinfo").read_bytes())
    return [line.fstype for line in lines if os.fsdecode(line.point).startswith(f"{directory}/")]


def running_below(directory: Path) -> list[bytes]:
    """The command lines of processes that are, or have something open, there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        links = [process / "cwd", *(process / "fd").glob("*")] if (process / "fd").is_dir() else []
        for link in links:
            try:
                if os.readlink(link).startswith(f"{directory}/"):
                    found.append((process / "cmdline").read_bytes())
            except OSError:  # it has ended, or was closed
                continue
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to_all", [False, True], ids=["to it alone", "to all that it has started"])
@pytest.mark.parametrize("kind", UNDER_WAY)
def test_when_it_is_stopped_nothing_stays(scratch: Path, kind: str, to_all: bool, number: signal.Signals) -> None:
    words = ["--only", kind, "--operation", "append to a lower file"]
    process = subprocess.Popen(
        [REPOSITORY / "scripts/reliability", *words],
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        until(lambda: mounted_below(process, scratch) == UNDER_WAY[kind], "no try begins", PATIENCE)
        os.kill(-process.pid if to_all else process.pid, number)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + number, err.decode()
    assert err.decode() == f"stopped by {number.name}\n"
    assert out.decode().splitlines()[-1].split()[-1] == "0"  # losses
    assert os.listdir(scratch) == []
    assert running_below(scratch) == []
