"""`pyunion diff`: what the writable layer changes, as `docker diff` prints it, or in full as JSON.

Owns how the changes are shown; what a change is, is pyunion/layers/diff.py.
"""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from contextlib import ExitStack

from pyunion.commands import given, work
from pyunion.errors import ExitCode, printable
from pyunion.layers import diff


@given.failures_told()
def run(arguments: Namespace) -> int:
    with ExitStack() as stack:
        place = work.known(arguments, work.running(os.fsencode(arguments.upper)))
        branches, missing = work.with_copies(given.branches(arguments, stack), place, stack)
        found = diff.changes(branches)
    if missing is not None:
        print(f"pyunion: {printable(missing)}", file=sys.stderr)
    if arguments.json:
        print(json.dumps([_facts(change) for change in found], indent=2))
        return ExitCode.OK
    for change in found:
        print(change.kind, printable(os.fsdecode(change.path)))
    return ExitCode.OK


def _facts(change: diff.Change) -> dict[str, object]:
    """What is known of a change and not the usual; paths as os.fsdecode gives them."""
    facts = {
        name: os.fsdecode(value) if isinstance(value, bytes) else value for name, value in change._asdict().items()
    }
    return {name: value for name, value in facts.items() if value not in (None, False, ())}
