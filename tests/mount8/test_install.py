"""scripts/install: links where mount(8) and systemd look, and never in the place of something else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.harness.mounts import REPOSITORY

_INSTALL = REPOSITORY / "scripts/install"
_LINKS = {
    "usr/local/bin/pyunion": "scripts/pyunion",
    "sbin/mount.pyunion": "scripts/pyunion",
    "sbin/mount.fuse.pyunion": "scripts/pyunion",
    "usr/local/lib/systemd/system/pyunion@.service": "systemd/pyunion@.service",
    "usr/local/lib/systemd/system-generators/pyunion-generator": "systemd/pyunion-generator",
}


def _run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DESTDIR": str(root)}
    return subprocess.run([_INSTALL, *arguments], env=environment, capture_output=True, text=True)


def _programs(root: Path) -> list[str]:
    return [name for name in _LINKS if (root / name).is_symlink()]


def test_install_and_remove(scratch: Path) -> None:
    assert _run(scratch).returncode == 0
    assert {name: (scratch / name).readlink() for name in _LINKS} == {
        name: REPOSITORY / target for name, target in _LINKS.items()
    }
    again = _run(scratch)
    assert (again.returncode, again.stderr) == (0, "")
    assert _run(scratch, "--remove").returncode == 0
    assert _programs(scratch) == []
    assert _run(scratch, "--remove").returncode == 0


def test_what_is_not_ours_is_left_alone(scratch: Path) -> None:
    (scratch / "sbin").mkdir()
    (scratch / "sbin/mount.pyunion").write_text("theirs\n")
    done = _run(scratch)
    assert done.returncode == 1
    assert f"{scratch}/sbin/mount.pyunion is there already and is not ours; remove it first" in done.stderr
    assert _programs(scratch) == []
    assert _run(scratch, "--remove").returncode == 0
    assert (scratch / "sbin/mount.pyunion").read_text() == "theirs\n"
