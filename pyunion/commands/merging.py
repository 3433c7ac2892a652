"""What flatten and squash have in common: a new directory that layers are merged into, with progress on a terminal."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack

from pyunion import __version__
from pyunion.branch import opening
from pyunion.branch.dirs import Branch, DirCache
from pyunion.commands import counting, work
from pyunion.config import split_lowers
from pyunion.errors import ExitCode, PyunionError
from pyunion.layers import indexed, resuming
from pyunion.layers.merge import Merge
from pyunion.layers.tree import Branches, Tree, open_branches
from pyunion.union import marks

_MOST_OPEN = 256


def merge(arguments: Namespace, below: Sequence[str]) -> None:
    """--upper and --lower become the directory NEW. Raises PyunionError and OSError."""
    own, data_only = split_lowers([os.fsencode(text) for text in arguments.lower])
    rest, more_data = split_lowers([os.fsencode(text) for text in below], data_only)
    if rest and data_only:
        raise PyunionError("data-only branches come last: name them in --below", ExitCode.USAGE)
    upper = None if arguments.upper is None else os.fsencode(arguments.upper)
    if upper is None and not own:
        raise PyunionError("name the layers with --lower DIR[:DIR...]", ExitCode.USAGE)
    place = os.path.abspath(os.fsencode(arguments.new))
    with ExitStack() as stack:
        if upper is not None:
            opening.lock_directory(upper, stack, shared=True)
        prefix = marks.USER if arguments.userxattr else None
        branches = open_branches(upper, [*own, *rest], stack, data_only=more_data, prefix=prefix)
        if upper is not None:
            place_of_work = None if arguments.work is None else os.fsencode(arguments.work)
            branches = work.refused(work.with_copies(branches, place_of_work, stack))
        under = branches.lowers[len(own) - data_only :] if rest else []
        last = under[0].index - 1 if under else len(branches.lowers)
        top = branches.union.root[0].branch
        more = list(indexed.changed_names(branches))

        def fill(half: resuming.Half) -> None:
            copy = Branch(0, place, half.tree, DirCache(_MOST_OPEN), xattr_prefix=top.xattr_prefix)
            with counting.objects() as tell:
                Merge(branches.union, Tree(under, branches.data) if under else None, last, copy, half, tell, more).run()

        resuming.resume(place, _work(branches, last), fill)


def _work(branches: Branches, last: int) -> str:
    """All that the result depends on, but for what is in the layers."""
    top = branches.union.root[0].branch
    every = [*([branches.upper] if branches.upper else []), *branches.lowers, *branches.data]
    paths = [(os.fsdecode(os.path.realpath(each.path)), os.fstat(each.root.fd()).st_ino) for each in every]
    counts = (branches.upper is None, last, len(branches.data), len(branches.copies))
    return repr((__version__, paths, counts, top.xattr_prefix, os.geteuid()))
