"""How long work says how far it is: by a function that is called for each object. Who shows it is pyunion.commands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")
Tell = Callable[[], None]


def nobody() -> None:
    """For when nobody looks."""


def told(things: Iterable[_T], tell: Tell) -> Iterator[_T]:
    """The same things, each of them told once it has been dealt with."""
    for thing in things:
        yield thing
        tell()
