"""`pyunion log-level`: say, or change, how much the daemon of a mount logs. Owns the output only."""

from __future__ import annotations

from argparse import Namespace

from pyunion.control import client
from pyunion.errors import ExitCode


def run(arguments: Namespace) -> int:
    with client.Connection(client.union_at(arguments.mountpoint)) as connection:
        answer = connection.ask("log-level", level=arguments.level)
    if arguments.level is None:
        print(answer["level"])
    return ExitCode.OK
