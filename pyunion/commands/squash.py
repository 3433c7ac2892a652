"""`pyunion squash`: several layers become one, with the whiteouts that the layers below them need."""

from __future__ import annotations

from argparse import Namespace

from pyunion.commands import given, merging
from pyunion.errors import ExitCode


@given.failures_told()
def run(arguments: Namespace) -> int:
    merging.merge(arguments, below=arguments.below)
    return ExitCode.OK
