"""How branches and what they hold are drawn: each branch in a colour of its own, as long as there are colours; marks
and hidden things recognisable.

Owns the colours and the console; knows no mounts and no branches.
"""

from __future__ import annotations

import sys

from rich.console import Console
from rich.style import Style

WHITEOUT = "(whiteout)"
_UPPER = "yellow"
_BASIC = ("green", "cyan", "magenta", "blue", "red")
# The first ten are on all terminals; the others are on those of 256 colours.
_LOWERS = (
    *_BASIC,
    *(f"bright_{name}" for name in _BASIC),
    *("dark_orange", "spring_green3", "dodger_blue1", "orchid", "gold3", "salmon1", "medium_purple", "aquamarine3"),
)
_WIDE = 1 << 16  # columns where there is no terminal: a line stays a line


def console() -> Console:
    """On stdout: as wide as the terminal, or as the longest line."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDE)


def colour(position: int, *, is_upper: bool) -> str:
    """Of the branch at a position in the stack, 0 being the topmost lower one."""
    return _UPPER if is_upper else _LOWERS[position % len(_LOWERS)]


def style(colour: str | None, *, whiteout: bool = False, hidden: bool = False) -> Style:
    """Of what a branch holds: whiteouts stand out, and what the union does not show is dim."""
    return Style(color=colour, bold=whiteout or None, reverse=whiteout or None, dim=hidden or None)


def say(to: Console, text: str, style: str | Style = "none", end: str = "\n") -> None:
    """Lines as they are: neither wrapped, so that paths can be copied, nor read as rich's markup."""
    to.print(text, style=style, end=end, markup=False, soft_wrap=True)
