"""Long work says on a terminal how far it is, and nowhere else."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.cli.command import clean_environment
from tests.harness.files import write
from tests.harness.mounts import PATIENCE, REPOSITORY
from tests.harness.union import Union
from tests.harness.warm import pyunion as command

_COUNT = re.compile(r"(\d+) objects")
_FILES = 40


def on_a_terminal(*arguments: str | Path) -> list[int]:
    """What a command counts, as script(1) sees it on a terminal."""
    words = shlex.join([sys.executable, "-m", "pyunion", *map(str, arguments)])
    done = subprocess.run(
        ["script", "--quiet", "--return", "--command", words, os.devnull],
        cwd=REPOSITORY,
        env=clean_environment() | {"TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout
    return [int(count) for count in _COUNT.findall(done.stdout)]


def test_objects_are_counted_on_a_terminal(pyunion: Union) -> None:
    base = pyunion.base
    for number in range(_FILES):
        write(pyunion.top / f"f{number}", "x")
    layout = base / "layout"
    for arguments in (
        ("commit", pyunion.top, base / "layer"),
        ("commit", pyunion.top, "--oci-layout", f"{layout}:tag"),
        ("import", f"{layout}:tag", base / "images"),
        ("export", base / "images", base / "out.tar"),
        ("flatten", "--lower", base / "layer", base / "flat"),
        ("squash", "--lower", f"{base / 'layer'}:{pyunion.low}", base / "squashed"),
    ):
        counts = on_a_terminal(*map(str, arguments))
        assert counts == sorted(counts), arguments
        assert counts[-1] >= _FILES, arguments


def test_nothing_is_said_where_nobody_looks(pyunion: Union) -> None:
    write(pyunion.top / "f", "x")
    done = command("commit", pyunion.top, pyunion.base / "layer")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
