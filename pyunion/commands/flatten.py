"""`pyunion flatten`: all that a union shows becomes one directory."""

from __future__ import annotations

from argparse import Namespace

from pyunion.commands import given, merging
from pyunion.errors import ExitCode


@given.failures_told()
def run(arguments: Namespace) -> int:
    merging.merge(arguments, below=[])
    return ExitCode.OK
