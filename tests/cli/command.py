"""Running the command line as a user does: a process of its own, its exit status and what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.harness.mounts import PATIENCE, REPOSITORY

# In a mount namespace of its own, so that what `before` mounts is gone with the process.
_SANDBOX = ["unshare", "--mount", "--propagation", "private", "sh", "-e", "-c"]


def pyunion(
    *arguments: str | Path, before: str = "", cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run pyunion. `before` is a shell script that prepares the mounts that only this process is to see."""
    command = [sys.executable, "-m", "pyunion", *map(str, arguments)]
    if before:
        command = [*_SANDBOX, before + '\nexec "$@"', "sh", *command]
    return subprocess.run(
        command,
        cwd=cwd or REPOSITORY,
        env=clean_environment() | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE,
    )


def clean_environment() -> dict[str, str]:
    """Nothing of the service that runs the tests, and this checkout from any directory."""
    kept = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
    return kept | {"PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "error"}
