"""What an image's config says of the program that it is for (image-spec, config.md), checked: it may be hostile."""

from __future__ import annotations

from typing import NamedTuple

from pyunion.errors import PyunionError
from pyunion.layers.oci import Json


class Program(NamedTuple):
    """How a program in the image begins."""

    command: list[str]  # entrypoint and arguments
    variables: list[str]  # NAME=VALUE
    user: str
    workdir: str


def program(config: Json) -> Program:
    """Raises PyunionError where a field cannot be what it should be."""
    said = config.get("config") or {}
    if not isinstance(said, dict):
        raise _wrong("config")
    return Program(
        [*_list(said, "Entrypoint"), *_list(said, "Cmd")],
        [variable for variable in _list(said, "Env") if variable.find("=") > 0],
        _text(said.get("User") or "", "User"),
        _text(said.get("WorkingDir") or "/", "WorkingDir"),
    )


def _list(said: Json, field: str) -> list[str]:
    value = said.get(field) or []
    if not isinstance(value, list):
        raise _wrong(field)
    return [_text(each, field) for each in value]


def _text(value: object, field: str) -> str:
    """Text that a system call takes: JSON can say more."""
    if not isinstance(value, str) or "\0" in value or any("\ud800" <= each <= "\udfff" for each in value):
        raise _wrong(field)
    return value


def _wrong(field: str) -> PyunionError:
    return PyunionError(f"the image's config has a {field} that is none; the image is damaged or hostile")
