"""`pyunion which`: which branch a path of a union comes from, what every branch has there, and what hides what.

Owns the sentences. What there is, is found by pyunion/survey.py; the mounted file system is asked for nothing but the
symlinks on the way.
"""

from __future__ import annotations

import json
import os
from argparse import Namespace
from contextlib import ExitStack
from typing import Any

from rich.console import Console
from rich.style import Style
from rich.text import Text

from pyunion import mountinfo
from pyunion.branch.dirs import Branch
from pyunion.commands import drawing
from pyunion.control import client
from pyunion.errors import ExitCode, PyunionError, printable
from pyunion.mountinfo import Mounted
from pyunion.survey import Entry, Held, Stack, Survey

_KINDS = {"opaque": "opaque ", "redirect": "renamed "}


def run(arguments: Namespace) -> int:
    console = drawing.console()
    told: list[dict[str, Any]] = []
    missing = False
    with ExitStack() as stack:
        surveys: dict[int, Survey] = {}
        for given in arguments.paths:
            mount, inside = locate(os.fsencode(given))
            if mount.device not in surveys:
                surveys[mount.device] = Survey(*client.daemon_of(mount), stack)
            survey = surveys[mount.device]
            found = survey.stack(inside)
            missing = missing or not found.shown
            if arguments.json:
                told.append(_plain(survey, given, found))
            else:
                _draw(console, survey, given, found)
    if arguments.json:
        print(json.dumps(told, indent=2))
    return ExitCode.FAILURE if missing else ExitCode.OK


def locate(given: bytes) -> tuple[Mounted, bytes]:
    """The union that a path lies in, and the path within it. Its last name is not followed, and need not exist."""
    above, name = os.path.split(os.path.abspath(given))
    path = os.path.join(os.path.realpath(above), name)
    mount = mountinfo.above(path)
    if mount is None or mount.fstype != client.FSTYPE:
        raise PyunionError(f"{os.fsdecode(given)} lies in no union; name a path below the mount point of one")
    return mount, mount.root + b"/" + os.path.relpath(path, mount.point) if path != mount.point else mount.root


def _plain(survey: Survey, given: str, found: Stack) -> dict[str, Any]:
    return {
        "path": given,
        "shown": found.shown,
        "what": found.what,
        "branches": [
            {
                "branch": os.fsdecode(entry.held.branch.path),
                "role": survey.role(entry.held.branch),
                "path": os.fsdecode(entry.held.path),
                "what": entry.held.what,
                "marks": entry.held.marks,
                "part": entry.part,
                "hidden_by": None if entry.by is None else _place(entry.by),
            }
            for entry in found.entries
        ],
    }


def _draw(console: Console, survey: Survey, given: str, found: Stack) -> None:
    top = next((entry for entry in found.entries if entry.part == "shown"), None)
    if top is not None:
        headline = f"{given}: {found.what}, from {os.fsdecode(top.held.branch.path)} ({survey.role(top.held.branch)})"
    else:
        headline = f"{given}: not in the union"
    drawing.say(console, printable(headline), "bold")
    rows = [(survey.role(e.held.branch), _place(e.held), _describe(e.held)) for e in found.entries]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for entry, cells in zip(found.entries, rows, strict=True):
        line = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        console.print(Text(f"  {line}  {_part(entry)}", _style(survey, entry)), soft_wrap=True)


def _style(survey: Survey, entry: Entry) -> Style:
    return drawing.style(
        colour_of(survey, entry.held.branch), whiteout=entry.held.what == "whiteout", hidden=entry.part == "hidden"
    )


def colour_of(survey: Survey, branch: Branch) -> str:
    """By its place among the lower branches; the index is upper's."""
    return drawing.colour(branch.index - survey.branches[0].is_upper, is_upper=branch.is_upper)


def _place(held: Held) -> str:
    return printable(os.fsdecode(held.branch.path + held.path))


def _describe(held: Held) -> str:
    """What it is, with its marks."""
    words = [held.what]
    if "opaque" in held.marks:
        words.append("opaque")
    if "metacopy" in held.marks:
        words.append("metadata only")
    if "redirect" in held.marks:
        words.append(f"is {held.marks['redirect']} below")
    if "origin" in held.marks:
        words.append("copied up")
    return printable(", ".join(words))


def _part(entry: Entry) -> str:
    if entry.part == "hides":
        return "hides what is below"
    if entry.by is None:
        return {"data": "gives the data", "merged": "merged"}.get(entry.part, entry.part)
    kind = next((word for mark, word in _KINDS.items() if mark in entry.by.marks), "")
    return f"hidden by the {kind}{entry.by.what} {_place(entry.by)}"
