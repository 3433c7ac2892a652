"""scripts/install: links where mount(8), systemd, man(1) and shells look, and never in the place of something else."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.harness.mounts import REPOSITORY
from tests.mount8.machine import Machine

_INSTALL = REPOSITORY / "scripts/install"
_LINKS = {
    "usr/local/bin/pyunion": "scripts/pyunion",
    "sbin/mount.pyunion": "scripts/pyunion",
    "sbin/mount.fuse.pyunion": "scripts/pyunion",
    "usr/local/lib/systemd/system/pyunion@.service": "systemd/pyunion@.service",
    "usr/local/lib/systemd/system-generators/pyunion-generator": "systemd/pyunion-generator",
    "usr/local/share/man/man1/pyunion.1": "build/share/pyunion.1",
    "usr/local/share/man/man5/pyunion.toml.5": "build/share/pyunion.toml.5",
    "usr/local/share/bash-completion/completions/pyunion": "build/share/pyunion.bash",
    "usr/local/share/zsh/site-functions/_pyunion": "build/share/pyunion.zsh",
    "etc/fish/completions/pyunion.fish": "build/share/pyunion.fish",
}

_BASH = "source /usr/share/bash-completion/bash_completion; _completion_loader pyunion; complete -p pyunion"
_ZSH = "autoload -U compinit; compinit -u -D; print $_comps[pyunion]"
# What somebody at the machine may ask, and the answer while it is installed.
_ASKED = {
    "man -w pyunion": f"{REPOSITORY}/build/share/pyunion.1",
    "man -w 5 pyunion.toml": f"{REPOSITORY}/build/share/pyunion.toml.5",
    f"bash -c '{_BASH}' | grep -w _pyunion": "complete -o bashdefault -F _pyunion pyunion",
    f"zsh -dfc '{_ZSH}'": "_pyunion",
    """fish -c 'complete -C "pyunion umo"' | cut -f 1""": "umount",
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
    assert [path for path in scratch.rglob("*") if not path.is_dir()] == []
    assert _run(scratch, "--remove").returncode == 0


def test_what_is_installed_is_whole_while_it_is_installed_again(scratch: Path) -> None:
    assert _run(scratch).returncode == 0
    pages = [scratch / name for name, target in _LINKS.items() if target.startswith("build/")]
    before = {page: page.read_bytes() for page in pages}
    again = subprocess.Popen([_INSTALL], env={**os.environ, "DESTDIR": str(scratch)}, stdout=subprocess.DEVNULL)
    while again.poll() is None:
        assert {page: page.read_bytes() for page in pages} == before
    assert again.returncode == 0


def test_what_is_not_ours_is_left_alone(scratch: Path) -> None:
    (scratch / "sbin").mkdir()
    (scratch / "sbin/mount.pyunion").write_text("theirs\n")
    done = _run(scratch)
    assert done.returncode == 1
    assert f"{scratch}/sbin/mount.pyunion is there already and is not ours; remove it first" in done.stderr
    assert _programs(scratch) == []
    assert _run(scratch, "--remove").returncode == 0
    assert (scratch / "sbin/mount.pyunion").read_text() == "theirs\n"


@pytest.mark.parametrize("question", _ASKED, ids=lambda question: question.split()[0])
def test_what_is_installed_is_found(machine: Machine, question: str) -> None:
    def assert_answer(expected: str) -> None:
        done = machine.run("sh", "-c", question, HOME=str(machine.home))
        assert done.stdout.strip() == expected, done.stderr

    assert_answer(_ASKED[question])
    machine.succeed(REPOSITORY / "scripts/install", "--remove")
    assert_answer("")
