"""A copy of the program for other users, as a checkout may lie where they cannot go."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

from tests.harness.mounts import REPOSITORY

_NEEDED = (
    *("pyfuse3", "trio", "outcome", "sniffio", "sortedcontainers", "attr", "attrs", "idna"),
    *("rich", "markdown_it", "mdurl", "pygments"),
)


def copy_program(to: Path) -> str:
    """Copy pyunion and what it needs into a new directory, for PYTHONPATH; returns the command that runs it."""
    shutil.copytree(REPOSITORY / "pyunion", to / "pyunion")
    for name in _NEEDED:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin)
        if source.name == "__init__.py" or source.parent.name == name:
            shutil.copytree(source.parent, to / name)
        else:
            shutil.copy(source, to)
    safe = " -P" if sys.version_info >= (3, 11) else ""
    return f"{os.path.realpath(sys.executable)}{safe} -m pyunion"
