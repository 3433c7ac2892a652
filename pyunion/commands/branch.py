"""`pyunion branch`: other lower branches for a union that is mounted. Owns how the words become a request."""

from __future__ import annotations

import os
from argparse import Namespace

from pyunion.control import client
from pyunion.errors import ExitCode, PyunionError

PATIENCE_S = 600.0  # what upper needs is looked for in all of it


def run(arguments: Namespace) -> int:
    path = os.path.realpath(arguments.directory)
    if arguments.action == "remove":
        if arguments.position is not None:
            raise PyunionError("--position, --top and --bottom say where to add a branch", ExitCode.USAGE)
        request: dict[str, object] = {"remove": path}
    else:
        place = 1 if arguments.position is None else arguments.position
        request = {"add": path, "position": place or None}
    with client.Connection(client.union_at(arguments.mountpoint), PATIENCE_S) as connection:
        connection.ask("branches", **request)
    return ExitCode.OK
