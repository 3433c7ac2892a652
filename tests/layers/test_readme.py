"""The lines of README's section on layers do what it says, as they are written."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.cli.command import clean_environment
from tests.harness.mounts import PATIENCE, REPOSITORY
from tests.layers.docker import LIMITS, Docker


def test_the_lines_run_as_they_are_written(docker: Docker, scratch: Path) -> None:
    (lines,) = re.findall(r"### Layers\n.*?```\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    docker("save", "--output", scratch / "saved.tar", "base")
    program = scratch / "bin/pyunion"
    program.parent.mkdir()
    program.symlink_to(REPOSITORY / "scripts/pyunion")
    environment = clean_environment()
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", lines],
        cwd=scratch, env={**environment, "PATH": f"{program.parent}:{environment['PATH']}"},
        capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[:3] == ["C /etc", "C /etc/motd", "D /old"]
    docker("load", "--input", scratch / "new.tar")
    assert docker("run", "--rm", *LIMITS, "base:new", "cat", "/etc/motd") == "hello\nchanged"
    assert (scratch / "layer/etc/motd").read_text() == "hello\nchanged\n"
    assert (scratch / "base.tar").exists()
    assert "hello" in done.stdout.splitlines()
    assert [path.name for path in (scratch / "kept").iterdir()] == ["made"]
