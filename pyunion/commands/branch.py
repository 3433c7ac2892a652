"""`pyunion branch`: other lower branches for a union that is mounted. Owns how the words become a request.

A path may lead to a file system that never answers, and whoever asks that cannot be ended. So a branch that is named as
the union has it is taken by that name, and any other path is looked up by a process that is left behind.
"""

from __future__ import annotations

import os
import select
from argparse import Namespace
from typing import NoReturn

from pyunion.control import client
from pyunion.errors import ExitCode, PyunionError

PATIENCE_S = 600.0  # what upper needs is looked for in all of it
_PATH_S = 10.0


def run(arguments: Namespace) -> int:
    if arguments.action == "remove" and arguments.position is not None:
        raise PyunionError("--position, --top and --bottom say where to add a branch", ExitCode.USAGE)
    mount = client.union_at(arguments.mountpoint)
    _, published = client.daemon_of(mount)
    path = _resolved(arguments.directory, published["lowers"])
    if arguments.action == "remove":
        request: dict[str, object] = {"remove": path}
    else:
        place = 1 if arguments.position is None else arguments.position
        request = {"add": path, "position": place or None}
    with client.Connection(mount, PATIENCE_S) as connection:
        connection.ask("branches", **request)
    return ExitCode.OK


def _resolved(given: str, known: list[str]) -> str:
    """A path without symlinks. Raises PyunionError where what is there does not answer."""
    absolute = os.path.abspath(given)
    if absolute in known and os.pardir not in given.split(os.sep):
        return absolute
    reader, writer = os.pipe()
    if os.fork() == 0:
        _look_up(given, writer)
    os.close(writer)
    with open(reader, "rb") as answer:
        if not select.select([answer], [], [], _PATH_S)[0]:
            raise PyunionError(
                f"{given} has not answered for {_PATH_S:.0f} s; to remove it, name it as `pyunion status` does",
                ExitCode.BRANCH,
            )
        return os.fsdecode(answer.read())


def _look_up(given: str, writer: int) -> NoReturn:
    """In a process that may never end, and so has nothing open for whose end somebody may wait."""
    try:
        for below, above in ((-1, writer), (writer, os.sysconf("SC_OPEN_MAX"))):
            os.closerange(below + 1, above)
        os.write(writer, os.fsencode(os.path.realpath(given)))
    finally:
        os._exit(0)
