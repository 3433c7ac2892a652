"""The file of `pyunion mount --config`, and /etc/pyunion/NAME.toml of a service: one mount, as TOML says it.

Owns the keys, the types of their values, and the sentence for what is wrong with them. What an option means is
pyunion.config, and whether the directories are usable is pyunion.preflight.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from pyunion.config import LOG_LEVELS, Options, is_address, parse_options
from pyunion.errors import ExitCode, PyunionError

_BRANCHES = re.compile(r"(^|,)(lowerdir|upperdir|workdir)=")


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What a file says, by its keys (with a hyphen for the underscore); None or nothing for a key that it has not."""

    lower: tuple[bytes, ...] = ()  # topmost first
    upper: bytes | None = None
    work: bytes | None = None
    mountpoint: bytes | None = None
    options: tuple[bytes, ...] = ()  # each as after -o
    log_level: str | None = None
    metrics: str | None = None

    def fill(self, into: Options) -> None:
        """Say the branches and the options, as the first of those that count. Raises PyunionError."""
        into.lowers, into.upper, into.work = list(self.lower), self.upper, self.work
        for text in self.options:
            parse_options(text, into)

    @property
    def paths(self) -> tuple[bytes, ...]:
        """The directories that must be there before the union can be, the mount point among them."""
        named = (*self.lower, self.upper, self.work, self.mountpoint)
        return tuple(path for path in named if path is not None)


def read(path: str) -> ConfigFile:
    """Read a file. Raises PyunionError, with the path and where it can be told the line, when anything is wrong."""
    text = _text(path)
    file, options = ConfigFile(**_values(_parse(text, path), text, path)), Options()
    try:
        file.fill(options)
    except PyunionError as error:
        raise _wrong(path, str(error), _line_of("options", text)) from None
    if options.remount:
        raise _wrong(path, "the option remount is for the command line", _line_of("options", text))
    return file


def mountpoint(path: str) -> bytes | None:
    """What a file says of this alone: to unmount takes no more, and somebody may be at work on the rest of it. Raises
    PyunionError."""
    text = _text(path)
    said = {key: value for key, value in _parse(text, path).items() if key == "mountpoint"}
    return _values(said, text, path).get("mountpoint")


def _values(found: dict[str, Any], text: str, path: str) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for key, value in found.items():
        try:
            said[key.replace("-", "_")] = _value(key, value)
        except ValueError as error:
            raise _wrong(path, str(error), _line_of(key, text)) from None
    return said


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError:
        raise _wrong(path, "this is not UTF-8, as TOML has to be") from None
    except FileNotFoundError:
        raise PyunionError(f"{path} does not exist; create it or correct the path", ExitCode.CONFIG) from None
    except OSError as error:
        raise PyunionError(f"cannot read {path}: {error.strerror}", ExitCode.CONFIG) from None


def _parse(text: str, path: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        # "Expected '=' after a key in a key/value pair (at line 3, column 7)"
        match = re.fullmatch(r"(.*?)(?: \(at (?:line (\d+), column \d+|end of document)\))?", str(error), re.DOTALL)
        assert match is not None
        line = int(match[2]) if match[2] else len(text.splitlines())
        raise _wrong(path, f"this is no TOML: {match[1]}", line) from None


def _value(key: str, value: object) -> object:
    """Raises ValueError with the rest of a sentence."""
    if key not in KEYS:
        raise ValueError(f"the key {key!r} is not known; those that are: {', '.join(KEYS)}")
    return KEYS[key].read(key, value)


def _path(key: str, value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError(f"{key} has to be a string")
    if not value.startswith("/") or "\0" in value:
        raise ValueError(f"{key} has to be an absolute path, and {value!r} is none")
    return value.encode()


def _paths(key: str, value: object) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{key} has to be a list of directories, topmost first, such as ['/srv/site', '/srv/base']")
    return tuple(_path(f"each element of {key}", path) for path in value)


def _options(key: str, value: object) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not all(isinstance(option, str) for option in value):
        raise ValueError(f"{key} has to be a list of strings, each as after -o, such as ['ro', 'metacopy=on']")
    for option in value:
        if _BRANCHES.search(option):
            raise ValueError(f"in {key} there is {option!r}; use the keys lower, upper and work for branches")
    return tuple(option.encode() for option in value)


def _log_level(key: str, value: object) -> str:
    if value not in LOG_LEVELS:
        raise ValueError(f"{key} has to be one of {', '.join(LOG_LEVELS)}")
    return str(value)


def _address(key: str, value: object) -> str:
    if not isinstance(value, str) or not is_address(value):
        raise ValueError(f"{key} has to be HOST:PORT, such as '127.0.0.1:9300' or '[::1]:9300'")
    return value


class Key(NamedTuple):
    """A key of the file. All but `read` is for its manual page."""

    read: Callable[[str, object], object]
    type: str
    default: str
    meaning: str


KEYS = {
    "lower": Key(_paths, "list of strings", "none", "the read-only branches, topmost first"),
    "upper": Key(_path, "string", "none", "the writable branch above them all; without it the union is read-only"),
    "work": Key(_path, "string", "none", "an empty directory on the file system of upper, needed with it"),
    "mountpoint": Key(_path, "string", "none", "the directory on which the union appears"),
    "options": Key(_options, "list of strings", "empty", "each as after -o, but for the branches"),
    "log-level": Key(_log_level, "string", "info", f"how much is logged: {', '.join(LOG_LEVELS)}"),
    "metrics": Key(_address, "string", "none", "HOST:PORT on which Prometheus finds the metrics of the mount"),
}


def _line_of(key: str, text: str) -> int | None:
    """Where a key of the top level stands, as far as a look at the text can tell: TOML's reader does not say."""
    quoted = rf"""["']?{re.escape(key)}["']?"""
    match = re.search(rf"^[ \t]*(?:{quoted}[ \t]*[=.]|\[+[ \t]*{quoted}[ \t]*[\].])", text, re.MULTILINE)
    return None if match is None else text.count("\n", 0, match.start()) + 1


def _wrong(path: str, what: str, line: int | None = None) -> PyunionError:
    where = os.fspath(path) if line is None else f"{path}, line {line}"
    return PyunionError(f"{where}: {what}", ExitCode.CONFIG)
