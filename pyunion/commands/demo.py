"""`pyunion demo`: three small branches, mounted, changed, and shown next to what the changes left on disk.

Owns the story that it tells and the check that the story is true. Uses pyunion as everybody does, by its command line;
asks the branches themselves what is in them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyunion.commands import drawing
from pyunion.errors import ExitCode
from pyunion.union import marks

# Topmost first. Every content is found in one branch only, and so tells where it comes from.
_LOWERS = {
    "site": {"etc/motd": "hello, site"},
    "tools": {"bin/hi": "hi 2.0", "bin/make": "make 4.4"},
    "base": {"etc/motd": "hello, base", "etc/hosts": "localhost", "bin/hi": "hi 1.0", "doc/faq": "42"},
}
_COLOURS = {"upper": drawing.colour(0, is_upper=True)}
_COLOURS |= {name: drawing.colour(number, is_upper=False) for number, name in enumerate(_LOWERS)}

_MOUNT = ["mount", "--lower", ":".join(_LOWERS), "--upper", "upper", "--work", "work", "merged"]
_UMOUNT = ["umount", "merged"]


class _Step(NamedTuple):
    """A command of the story, and what it has to print."""

    caption: str
    command: str
    output: str = ""


_STORY = [
    _Step(
        "The topmost branch wins, and directories merge:",
        "cat merged/etc/motd merged/bin/hi",
        "hello, site\nhi 2.0\n",
    ),
    _Step("A change is made to a copy in upper:", "echo 10.0.0.7 >> merged/etc/hosts"),
    _Step("A whiteout hides what was deleted:", "rm merged/bin/make"),
    _Step("New files go to upper:", "echo new > merged/bin/ed"),
    _Step("A renamed directory leaves its files where they are:", "mv merged/doc merged/help"),
    _Step(
        "And this is the union now:",
        "cd merged && ls bin etc help && cat etc/hosts help/faq",
        "bin:\ned\nhi\n\netc:\nhosts\nmotd\n\nhelp:\nfaq\nlocalhost\n10.0.0.7\n42\n",
    ),
]
_MERGED = {
    "bin": "dir",
    "bin/ed": "new",
    "bin/hi": "hi 2.0",
    "etc": "dir",
    "etc/hosts": "localhost\n10.0.0.7",
    "etc/motd": "hello, site",
    "help": "dir",
    "help/faq": "42",
}
_UPPER = {
    "bin": "dir",
    "bin/ed": "new",
    "bin/make": drawing.WHITEOUT,
    "doc": drawing.WHITEOUT,
    "etc": "dir",
    "etc/hosts": "localhost\n10.0.0.7",
    "help": "dir, is doc",
}


def run(arguments: Namespace) -> int:
    return _Demo(Path(tempfile.mkdtemp(prefix="pyunion-demo-")), drawing.console()).run(arguments.keep)


class _Demo:
    def __init__(self, home: Path, console: Console) -> None:
        self._home = home
        self._console = console
        self._wrong: list[str] = []

    def run(self, keep: bool) -> int:
        self._make_branches()
        before = {name: _contents(self._home / name) for name in _LOWERS}
        if status := self._pyunion(_MOUNT):
            shutil.rmtree(self._home)
            return status
        try:
            self._tell_story()
            self._compare(before)
        finally:
            status = ExitCode.OK if keep else self._end()
        if keep:
            self._say(f"\nStill mounted. To end it: pyunion umount {self._home}/merged && rm -r {self._home}")
        for sentence in self._wrong:
            self._say(f"WRONG: {sentence}", style="bold red")
        return status or (ExitCode.FAILURE if self._wrong else ExitCode.OK)

    def _make_branches(self) -> None:
        self._say(f"Three branches in {self._home}, and an empty one to write to:")
        for name, files in _LOWERS.items():
            for path, content in files.items():
                file = self._home / name / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(content + "\n")
        for name in ("upper", "work", "merged"):
            (self._home / name).mkdir()

    def _tell_story(self) -> None:
        for caption, command, output in _STORY:
            self._say(f"\n{caption}", style="italic")
            self._show_command(command)
            done = subprocess.run(
                ["sh", "-c", command],
                cwd=self._home,
                env={**os.environ, "LC_ALL": "C"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            self._say(done.stdout, end="")
            if done.returncode or done.stdout != output:
                self._wrong.append(f"`{command}` gave status {done.returncode} and {done.stdout!r}")

    def _compare(self, before: dict[str, dict[str, str]]) -> None:
        """Show the union and all branches side by side, and hold them against what the story says."""
        after = {name: _contents(self._home / name) for name in ("merged", "upper", *_LOWERS)}
        self._say("\nWhere it all is:", style="italic")
        self._console.print(_table(after))
        for name, expected in {"merged": _MERGED, "upper": _UPPER, **before}.items():
            if after[name] != expected:
                self._wrong.append(f"{name} holds {after[name]}, and not {expected}")
        if not self._wrong:
            self._say("The three lower branches are as they were.")

    def _end(self) -> int:
        status = self._pyunion(_UMOUNT)
        if status == ExitCode.OK:  # or else the removal would go through the mount
            shutil.rmtree(self._home)
        return status

    def _pyunion(self, arguments: list[str]) -> int:
        self._show_command(" ".join(["pyunion", *arguments]))
        environment = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"}
        places = [str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, places))
        command = [sys.executable, "-m", "pyunion", *arguments]
        return subprocess.run(command, cwd=self._home, env=environment, stdin=subprocess.DEVNULL).returncode

    def _show_command(self, command: str) -> None:
        self._say(f"$ {command}", style="bold")

    def _say(self, text: str, style: str = "none", end: str = "\n") -> None:
        drawing.say(self._console, text, style, end)


def _contents(top: Path) -> dict[str, str]:
    """What a directory holds: path -> `dir`, a content, or what a mark means."""
    return {str(path.relative_to(top)): _content(path) for path in sorted(top.rglob("*"))}


def _content(path: Path) -> str:
    if path.is_dir():
        redirect = _mark(path, marks.REDIRECT)
        return "dir" if redirect is None else f"dir, is {os.fsdecode(redirect).strip('/')}"
    if path.is_char_device() or _mark(path, marks.WHITEOUT) is not None:
        return drawing.WHITEOUT
    return path.read_text().rstrip("\n")


def _mark(path: Path, mark: bytes) -> bytes | None:
    for prefix in (marks.TRUSTED, marks.USER):
        with contextlib.suppress(OSError):
            return os.getxattr(path, prefix + mark)
    return None


def _table(contents: dict[str, dict[str, str]]) -> Table:
    table = Table("path")
    for name in contents:
        table.add_column(name, header_style=_COLOURS.get(name, ""))
    for path in sorted({path for held in contents.values() for path in held}):
        cells = [_cell(name, held.get(path, ""), contents) for name, held in contents.items()]
        table.add_row(Text(path), *cells)
    return table


def _cell(branch: str, content: str, contents: dict[str, dict[str, str]]) -> Text:
    """In the colour of the branch that it comes from, and dim where the union does not show it."""
    if content == drawing.WHITEOUT:
        return Text(content, drawing.style(_COLOURS[branch], whiteout=True))
    if branch == "merged" and not content.startswith("dir"):
        branch = next((name for name in _COLOURS if content in contents[name].values()), branch)
    hidden = content not in contents["merged"].values() and not content.startswith("dir")
    return Text(content, drawing.style(_COLOURS.get(branch), hidden=hidden))
