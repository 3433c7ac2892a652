"""`pyunion refresh`: what was changed in the lower branches from outside is seen. Owns nothing but the request."""

from __future__ import annotations

from argparse import Namespace

from pyunion.commands.branch import PATIENCE_S
from pyunion.control import client
from pyunion.errors import ExitCode


def run(arguments: Namespace) -> int:
    with client.Connection(client.union_at(arguments.mountpoint), PATIENCE_S) as connection:
        connection.ask("refresh")
    return ExitCode.OK
