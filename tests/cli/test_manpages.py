"""The manual pages: made without a warning, and they say all that `--help` says."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyunion.cli import make_parser
from pyunion.configfile import KEYS
from pyunion.errors import ExitCode
from tests.cli.command import pyunion
from tests.harness.mounts import REPOSITORY

_COMMANDS = next(
    action.choices for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction)
)  # fmt: skip
_HEADINGS = {"positional arguments:", "options:"}


def _page(directory: Path, name: str) -> str:
    """A page as man(1) shows it on a terminal of any width, which has nothing to complain of."""
    subprocess.run([sys.executable, "-I", REPOSITORY / "scripts/manpages.py", directory], check=True)
    environment = {**os.environ, "LC_ALL": "C", "MANWIDTH": "1000"}
    done = subprocess.run(
        ["man", "--warnings", "--local-file", directory / name], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def _words(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The sections of pyunion(1), those of the commands among them."""
    text = _page(tmp_path_factory.mktemp("man"), "pyunion.1")
    parts = re.split(r"^ {0,3}(\S.*)\n", text, flags=re.MULTILINE)
    return {title: _words(body) for title, body in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize("command", _COMMANDS)
def test_all_that_help_says_is_there(command: str, sections: dict[str, str]) -> None:
    said = pyunion(command, "--help", COLUMNS="1000").stdout.removeprefix("usage: ")
    pieces = [piece for line in said.splitlines() for piece in re.split(r" {2,}", line.strip())]
    assert pieces
    in_page = sections[f"pyunion {command}"].casefold()
    assert [piece for piece in pieces if piece not in _HEADINGS and piece.casefold() not in in_page] == []


def test_what_goes_before_a_command_is_there(sections: dict[str, str]) -> None:
    assert "--version" in sections["OPTIONS"]
    assert sections["SYNOPSIS"].startswith("pyunion [-h] [--version] COMMAND ...")


def test_an_option_of_o_has_a_line_of_its_own(tmp_path: Path) -> None:
    text = _page(tmp_path, "pyunion.1")
    assert re.search(
        r"^ +redirect_dir=on\|follow\|nofollow\|off\n +whether renaming .*\n\n +metacopy=", text, re.MULTILINE
    )


@pytest.mark.parametrize("code", ExitCode, ids=lambda code: code.name)
def test_every_exit_status_is_there(code: ExitCode, sections: dict[str, str]) -> None:
    assert code.meaning
    assert f"{code.value} {code.meaning}" in sections["EXIT STATUS"]


def test_every_key_of_the_file_is_there(tmp_path: Path) -> None:
    text = _words(_page(tmp_path, "pyunion.toml.5"))
    assert [
        key for key, said in KEYS.items() if f"{key} ({said.type}; default: {said.default}) {said.meaning}" not in text
    ] == []
    assert _words((REPOSITORY / "systemd/merged.toml").read_text()) in text


def test_readme_and_manual_say_the_same_of_a_reload(tmp_path: Path) -> None:
    readme = _words((REPOSITORY / "README.md").read_text()).replace("`", "")
    (said,) = re.findall(r"A reload (changes .*? stays as it is\.)", readme)
    assert f"A reload of the service {said}" in _words(_page(tmp_path, "pyunion.toml.5"))
