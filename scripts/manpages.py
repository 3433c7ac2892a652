"""Writes the manual pages pyunion(1) and pyunion.toml(5) into a directory: manpages.py DIRECTORY

Owns their form (man(7), man-pages(7)) and the few paragraphs that `--help` has not. All else is said by the parser, by
the keys of configfile and by ExitCode, and is in the page as soon as it is there. scripts/install runs it.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from datetime import date
from pathlib import Path

from pyunion import __version__
from pyunion.cli import make_parser
from pyunion.configfile import KEYS
from pyunion.errors import ExitCode

# Texts have the form of an epilog in --help: paragraphs, and indented lines that begin with a term. What is said of it
# comes after two spaces, and on lines that are indented more.
_DESCRIPTION = """\
Merges an ordered list of read-only directories with one writable directory, and shows the result as one tree, by FUSE.
What is written goes to the writable one. The semantics and every byte on disk are those of Linux overlayfs.

mount(8) and fstab(5) know it as the types pyunion and fuse.pyunion; podman and buildah mount with it where
storage.conf names it as mount_program. pyunion is then called without a command.
"""
_ENVIRONMENT = """\
  NOTIFY_SOCKET  set by a service manager; mount then stays, and says READY=1 when the union answers, see sd_notify(3)
  WATCHDOG_USEC, WATCHDOG_PID  whether signs of life are asked for, see sd_watchdog_enabled(3)
  JOURNAL_STREAM  whether stderr goes to the journal, which then gets levels and fields, see systemd.exec(5)
"""
_FILES = """\
  /etc/pyunion/NAME.toml  the mount that the service pyunion@NAME runs, see pyunion.toml(5)
  WORK/work/incompat/volatile  the mark of -o volatile; upper is not mounted again before it is removed
"""
_EXAMPLES = """\
  pyunion mount --lower image:base --upper upper --work work merged
    image lies above base; what is written to merged goes to upper
  pyunion mount --lower image:base merged
    a read-only union
  pyunion mount -o lowerdir=image:base,upperdir=upper,workdir=work merged
    the first one as mount(8) writes it
  pyunion umount merged
    waits until everything is written
"""
_FILE_DESCRIPTION = """\
A mount, as a file in TOML (https://toml.io): for mount --config, and as /etc/pyunion/NAME.toml for the service
pyunion@NAME. Paths are absolute, and have no escapes for colons and commas. A key that is not known is an error.

What the command line says comes first: branches there are in the place of those in the file, options are added.

A reload of the service changes lower, log-level, and of the options ro, nosuid, nodev, noexec, noatime; anything else
that differs is refused, and the mount stays as it is.
"""
_PARSER_OWN = {"positional arguments", "options"}  # groups that nobody has named


def escaped(text: str) -> str:
    """Text of one line for roff; hyphens stay such as can be copied to a command line."""
    for character, name in {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}.items():
        text = text.replace(character, name)
    return rf"\&{text}" if text.startswith(".") else text


def entry(term: str, meaning: str) -> Iterator[str]:
    yield from (".TP", rf"\fB{escaped(term)}\fR", escaped(meaning) or r"\&")


def body(text: str) -> Iterator[str]:
    """A text in the form of an epilog."""
    for lines in re.findall(r"^(  \S.*(?:\n   .*)*|\S.*(?:\n\S.*)*)", text, re.MULTILINE):
        if lines.startswith("  "):
            term, _, meaning = re.sub(r"\n *", "  ", lines.strip()).partition("  ")
            yield from entry(term, " ".join(meaning.split()))
        else:
            yield from (".PP", *map(escaped, lines.splitlines()))


def usage(parser: ArgumentParser) -> Iterator[str]:
    words = " ".join(parser.format_usage().split()).removeprefix(f"usage: {parser.prog} ")
    # A line is not to end between a switch and its value.
    whole = re.sub(r"\[(?:[^][]|\[[^][]*\])*\]", lambda match: match[0].replace(" ", "\0"), words)
    yield from (".PP", rf"\fB{escaped(parser.prog)}\fR " + escaped(whole).replace("\0", r"\ "))


def arguments(parser: ArgumentParser) -> Iterator[str]:
    formatter = parser._get_formatter()
    for group in parser._action_groups:
        shown = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        if shown and group.title not in _PARSER_OWN:
            yield from (".PP", escaped(f"{group.title}:".capitalize()), escaped(group.description or ""))
        for action in shown:
            if not isinstance(action, argparse._SubParsersAction):
                said = formatter._expand_help(action) if action.help else ""
                yield from entry(formatter._format_action_invocation(action), said)


def commands(parser: ArgumentParser) -> Iterator[str]:
    """A sub-section for each command, and for those that it has itself."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            said = {choice.dest: choice.help for choice in action._choices_actions}
            for name, command in action.choices.items():
                yield f".SS {escaped(command.prog)}"
                yield from usage(command)
                help_text = said.get(name) or ""
                yield from body(command.description or f"{help_text[:1].upper()}{help_text[1:]}.")
                yield from arguments(command)
                yield from body(command.epilog or "")
                yield from commands(command)


def page(name: str, number: int, kind: str, what: str, sections: dict[str, Iterable[str]]) -> str:
    lines = [f'.TH {name.upper()} {number} {date.today()} "pyunion {__version__}" "{kind}"', ".nh", ".ad l", ".ss 12 0"]
    for title, text in {"NAME": [rf"{name} \- {escaped(what)}"], **sections}.items():
        lines += (f".SH {title}", *text)
    # What follows a heading is a paragraph already.
    return re.sub(r"^(\.S[HS] .*)\n\.PP$", r"\1", "\n".join(lines), flags=re.MULTILINE) + "\n"


def program() -> str:
    parser = make_parser()
    sections: dict[str, Iterable[str]] = {
        "SYNOPSIS": [*usage(parser), ".PP", r"\fBmount \-t fuse.pyunion\fR SRC MNT \fB\-o\fR OPTIONS"],
        "DESCRIPTION": body(_DESCRIPTION),
        "OPTIONS": arguments(parser),
        "COMMANDS": commands(parser),
        "EXIT STATUS": body("".join(f"  {code.value}  {code.meaning}\n" for code in ExitCode)),
        "ENVIRONMENT": body(_ENVIRONMENT),
        "FILES": body(_FILES),
        "EXAMPLES": body(_EXAMPLES),
        "SEE ALSO": ["pyunion.toml(5), mount(8), umount(8), fstab(5), fuse(4)"],
    }
    return page("pyunion", 1, "User Commands", "read-only branches and one writable branch as one tree", sections)


def config_file() -> str:
    example = (Path(__file__).resolve().parents[1] / "systemd/merged.toml").read_text()
    keys = "".join(f"  {name} ({key.type}; default: {key.default})  {key.meaning}\n" for name, key in KEYS.items())
    sections: dict[str, Iterable[str]] = {
        "DESCRIPTION": body(_FILE_DESCRIPTION),
        "KEYS": body(keys),
        "EXAMPLE": [".EX", *map(escaped, example.splitlines()), ".EE"],
        "SEE ALSO": ["pyunion(1), systemctl(1)"],
    }
    return page("pyunion.toml", 5, "File Formats", "a mount of pyunion, as a file", sections)


if __name__ == "__main__":
    os.environ.update(COLUMNS="1000", NO_COLOR="1")  # argparse asks these
    directory = Path(sys.argv[1])
    (directory / "pyunion.1").write_text(program())
    (directory / "pyunion.toml.5").write_text(config_file())
