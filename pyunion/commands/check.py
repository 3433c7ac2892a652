"""`pyunion check`: whether upper and work are sound, and with --repair the repair of what can be repaired.

Owns the order: never while it is mounted, everything found first, then repaired; and the exit status. What a fault is
and how it is repaired is pyunion/layers/check.py.
"""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from contextlib import ExitStack

from pyunion import preflight
from pyunion.branch import opening
from pyunion.commands import given
from pyunion.errors import ExitCode, printable
from pyunion.layers import check


@given.failures_told()
def run(arguments: Namespace) -> int:
    logging.getLogger("pyunion").setLevel(logging.ERROR)  # what readers warn of is found here
    work = os.path.realpath(os.fsencode(arguments.work))
    with ExitStack() as stack:
        preflight.refuse_kernels(*map(os.fsencode, (arguments.upper, arguments.work)))
        for path in (arguments.upper, arguments.work):
            opening.lock_directory(os.fsencode(path), stack, shared=not arguments.repair)
        branches = given.branches(arguments, stack, writable=arguments.repair)
        found = list(check.findings(branches, work, stack))
        for finding in found:
            _say(finding, arguments.repair)
    return _status(found, arguments.repair)


def _say(finding: check.Finding, repair: bool) -> None:
    text = f"{os.fsdecode(finding.path)}: {finding.sentence}"
    if finding.repair is None:
        print(printable(text))
    elif repair:
        print(printable(f"{text}: {finding.repair()}"))
    else:
        print(printable(f"{text}; --repair puts it right"))


def _status(found: list[check.Finding], repair: bool) -> int:
    if not found:
        return ExitCode.OK
    return ExitCode.REPAIRED if repair and all(finding.repair for finding in found) else ExitCode.FINDINGS
