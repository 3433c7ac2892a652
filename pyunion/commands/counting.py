"""A line on a terminal that says how far long work is; nothing anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pyunion.interrupts import put_off
from pyunion.layers.telling import Tell, nobody


@contextmanager
def objects() -> Iterator[Tell]:
    """To be called for each object; shows how many there were, and since when, if anybody looks."""
    if not sys.stderr.isatty():
        yield nobody
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed} objects"), TimeElapsedColumn())
    # The cursor is hidden meanwhile, and is to come back.
    with put_off() as let_in, Progress(*columns, console=Console(stderr=True), transient=True) as progress, let_in():
        task = progress.add_task("", total=None)
        yield lambda: progress.advance(task)
