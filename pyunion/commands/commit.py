"""`pyunion commit`: an upper branch becomes a layer, as a directory or on top of an image.

Owns the order. What a snapshot is, is pyunion/layers/snapshot.py.
"""

from __future__ import annotations

import os
import time
from argparse import Namespace
from contextlib import ExitStack
from functools import partial

from pyunion import preflight
from pyunion.branch import opening
from pyunion.branch.dirs import Branch, DirCache
from pyunion.commands import counting, given, work
from pyunion.errors import ExitCode, PyunionError
from pyunion.interrupts import put_off
from pyunion.layers import indexed, items, oci, staging, streams, tarwriter
from pyunion.layers.snapshot import Snapshot
from pyunion.layers.telling import told
from pyunion.layers.tree import Branches

_MOST_OPEN = 256


@given.failures_told()
@given.ended_in_order()
def run(arguments: Namespace) -> int:
    if (arguments.new is None) == (arguments.oci_layout is None):
        raise PyunionError("name either a new directory or --oci-layout DIR[:TAG]", ExitCode.USAGE)
    with ExitStack() as stack:
        branches = given.branches(arguments, stack)
        running = work.running(os.fsencode(arguments.upper))
        mounted = _mounted(os.fsencode(arguments.upper), running, stack)
        branches = work.refused(work.with_copies(branches, work.known(arguments, running), stack))
        if arguments.new is not None:
            new = os.fsencode(arguments.new)
            with staging.staged(new) as fd:
                _snapshot(branches, mounted, new, fd)
        else:
            print(_commit(arguments, branches, mounted))
    return ExitCode.OK


def _snapshot(branches: Branches, mounted: Branch | None, place: bytes, fd: int) -> None:
    """Fill the empty directory `place`, open as `fd`."""
    assert branches.upper is not None
    copy = Branch(0, place, fd, DirCache(_MOST_OPEN), xattr_prefix=branches.upper.xattr_prefix)
    with counting.objects() as tell:
        Snapshot(branches.upper, copy, mounted, tell, partial(indexed.changed_names, branches)).take()


def _commit(arguments: Namespace, branches: Branches, mounted: Branch | None) -> str:
    """Returns the digest of the manifest."""
    path, tag = given.layout_and_tag(arguments.oci_layout)
    epoch = given.source_date_epoch(arguments)
    layout = oci.Layout.make(path)
    with layout.locked():
        descriptor = layout.tags().get(tag)
        image = oci.new_image() if descriptor is None else layout.image(descriptor)

        def write(sink: streams.HashingWriter) -> None:
            with counting.objects() as tell:
                tarwriter.TarWriter(sink, epoch).write(told(items.layer_items(tree), tell))

        assert branches.upper is not None
        with put_off() as let_in, ExitStack() as stack, let_in():
            tree = branches.union
            if mounted is not None or branches.copies or preflight.work_of_overlay(branches.upper.path) is not None:
                tree = _frozen(branches, mounted, path, stack).union
            layer = layout.put_layer(arguments.compression, write)
        created = int(time.time()) if epoch is None else epoch
        return str(layout.put_image(tag, oci.with_layer(image, layer, created, "pyunion commit"))["digest"])


def _frozen(branches: Branches, mounted: Branch | None, folder: bytes, stack: ExitStack) -> Branches:
    """The union with a snapshot in the place of upper, in the folder for as long as `stack`."""
    place, fd = stack.enter_context(staging.scratch(folder))
    _snapshot(branches, mounted, place, fd)
    assert branches.upper is not None
    upper = opening.open_upper(place, DirCache(_MOST_OPEN), stack, branches.upper.xattr_prefix, read_only=True)
    upper.path = branches.upper.path  # what is wrong with it is told of that
    return branches._replace(upper=upper, copies={})


def _mounted(upper: bytes, found: work.Running | None, stack: ExitStack) -> Branch | None:
    """The root of the union that has this upper branch, if pyunion has it mounted; or else the branch is locked, so
    that nobody mounts it before `stack` ends."""
    if found is None:
        opening.lock_directory(upper, stack, shared=True)
        return None
    fd = os.open(found.point, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return Branch(0, found.point, fd, DirCache(_MOST_OPEN))
