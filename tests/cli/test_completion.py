"""Completion of words: a shell with a terminal, and somebody who presses TAB."""

from __future__ import annotations

import argparse
import os
import pty
import select
import subprocess
from argparse import ArgumentParser
from pathlib import Path

import pytest

from pyunion.cli import make_parser
from tests.cli.command import pyunion
from tests.harness.mounts import PATIENCE

_PROMPT = "ready> "
# pyunion tells what it was called with.
_RC = """\
PS1='{prompt}'
pyunion() {{ printf '%s\\n' "$@" >{home}/called; }}
"""
_BASH = "source {home}/pyunion.bash\n"
_ZSH = """\
fpath=({home}/functions $fpath)
autoload -Uz compinit
compinit -u -D
"""
_CASES = {
    "umo": "umount",
    "mount --foreg": "mount --foreground",
    "mount --redirect-dir of": "mount --redirect-dir off",
    "mount --log-level=deb": "mount --log-level=debug",
    "mount --upper si": "mount --upper site",
    "mount --upper=si": "mount --upper=site",
    "mount --lower site:ba": "mount --lower site:base",
    "mount --lower site:base/my": "mount --lower site:base/my dir",
    "mount --lower site:base/my\\ dir:base/l": "mount --lower site:base/my dir:base/last",
    "mount -o lowerdir=site:base,upperdir=me": "mount -o lowerdir=site:base,upperdir=merged",
    "mount --lower site:base me": "mount --lower site:base merged",
    "mount SRC me": "mount SRC merged",
    "mount --config site.": "mount --config site.toml",
    "umount me": "umount merged",  # there is a file merged.toml, too
    "umount base/my\\ ": "umount base/my dir",
    "info site me": "info site merged",
    "completion z": "completion zsh",
}


@pytest.fixture(scope="module")
def printed() -> dict[str, str]:
    return {shell: pyunion("completion", shell).stdout for shell in ("bash", "zsh", "fish")}


@pytest.fixture
def home(scratch: Path, printed: dict[str, str]) -> Path:
    """With branches and files in `here`, and with what each shell reads."""
    for name in ("site", "base/my dir", "base/last", "merged"):
        (scratch / "here" / name).mkdir(parents=True)
    for name in ("site.toml", "merged.toml"):
        (scratch / "here" / name).touch()
    (scratch / "functions").mkdir()
    for shell, name in {"bash": "pyunion.bash", "zsh": "functions/_pyunion", "fish": "pyunion.fish"}.items():
        (scratch / name).write_text(printed[shell])
    for name, more in {".bashrc": _BASH, ".zshrc": _ZSH}.items():
        (scratch / name).write_text((_RC + more).format(home=scratch, prompt=_PROMPT))
    return scratch


def _press(home: Path, shell: list[str], keys: str) -> str:
    """Type in a shell that is ready for it; returns what pyunion was called with, slashes at the end aside."""
    terminal, inside = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "ZDOTDIR": str(home), "TERM": "dumb", "LC_ALL": "C"}
    process = subprocess.Popen(
        shell, cwd=home / "here", env=environment, stdin=inside, stdout=inside, stderr=inside, start_new_session=True
    )
    os.close(inside)
    said, typed = b"", False
    while select.select([terminal], [], [], PATIENCE)[0]:
        try:
            said += os.read(terminal, 1 << 16)
        except OSError:  # EIO: the shell has ended
            break
        if not typed and _PROMPT.encode() in said:
            os.write(terminal, f"{keys}\nexit\n".encode())
            typed = True
    os.close(terminal)
    assert process.wait(PATIENCE) == 0, said
    return " ".join(word.rstrip("/") for word in (home / "called").read_text().splitlines())


def _commands(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    return next(dict(action.choices) for action in parser._actions if isinstance(action, argparse._SubParsersAction))


def _offered_by_bash(home: Path, *words: str) -> set[str]:
    """All that bash has for the last word, as readline asks for it: by the function that `complete` names."""
    script = (
        'source "$0"; [[ $(complete -p pyunion) =~ -F\\ ([^ ]+)\\ pyunion$ ]];'
        ' COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1));'
        ' "${BASH_REMATCH[1]}"; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", script, home / "pyunion.bash", *words], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stderr == ""
    return set(done.stdout.splitlines())


@pytest.mark.parametrize("line", _CASES)
@pytest.mark.parametrize("shell", [["bash", "--noprofile", "-i"], ["zsh", "-d", "-i"]], ids=["bash", "zsh"])
def test_tab(home: Path, shell: list[str], line: str) -> None:
    assert _press(home, shell, f"pyunion {line}\t") == _CASES[line]


def test_a_list_stays_whole_where_bash_does_not_cut_words_at_colons(home: Path) -> None:
    with (home / ".bashrc").open("a") as file:
        file.write("COMP_WORDBREAKS=${COMP_WORDBREAKS//:}\n")
    line = "pyunion mount --lower site:ba\t"
    assert _press(home, ["bash", "--noprofile", "-i"], line) == "mount --lower site:base"


def test_bash_knows_all_commands_and_switches(home: Path) -> None:
    commands = _commands(make_parser())
    assert _offered_by_bash(home, "pyunion", "") == set(commands)
    for name, command in commands.items():
        switches = {
            switch
            for action in command._actions
            if action.help != argparse.SUPPRESS
            for switch in action.option_strings
        }
        assert _offered_by_bash(home, "pyunion", name, "-") == switches


@pytest.mark.parametrize("line", [line for line in _CASES if "=" not in line and "\\" not in line])
def test_fish(home: Path, line: str) -> None:
    """fish is asked as its own completion asks; it answers with the last word, and after a tab what it is."""
    done = subprocess.run(
        ["fish", "--no-config", "-c", "source ../pyunion.fish; complete -C $argv[1]", f"pyunion {line}"],
        cwd=home / "here", env={**os.environ, "HOME": str(home)}, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.stderr == ""
    words = {answer.partition("\t")[0].rstrip("/") for answer in done.stdout.splitlines()}
    assert words == {_CASES[line].removeprefix(line.rpartition(" ")[0]).lstrip()}
