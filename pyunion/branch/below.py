"""What the layers below an entry have that belongs to it: how redirects and metadata-only copies lead downwards.

Owns the walk by name or absolute path through the layers that are left. Knows no nodes and no upper branch: an entry is
(layer, name), and who wins among the layers of one directory is pyunion/union/merge.py. Changes nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from errno import EPERM
from stat import S_ISREG
from typing import NamedTuple

from pyunion.branch.dirs import Dir
from pyunion.branch.marks import read_dir_marks, read_file_marks
from pyunion.union import marks
from pyunion.union.merge import Kind

log = logging.getLogger(__name__)


class Layers(NamedTuple):
    """Where to look: the parts of the entry's directory, those of the root, and data-only branches."""

    here: Sequence[Dir]
    root: Sequence[Dir]
    data: Sequence[Dir] = ()  # searched for nothing but the data of metadata-only copies
    follow: bool = True  # redirects


class Part(NamedTuple):
    """What one layer has of an entry."""

    dir: Dir
    name: bytes
    st: os.stat_result
    xwhiteouts: bool  # a directory that may hold whiteouts in xattr form


class _Step(NamedTuple):
    """What one layer says about a path."""

    found: Part | None
    stop: bool
    path: bytes  # what to look for in the layers below


def below(layers: Layers, index: int, name: bytes, redirect: bytes | None, *, want_dir: bool) -> Iterator[Part]:
    """What the layers under branch number `index` have that belongs to its entry `name`, topmost first.

    A redirect changes the name that is looked for from there on; an absolute one is looked for from the root. Raises
    OSError (EPERM) where there is one that is not to be followed.
    """
    path = redirect or name
    while True:
        source: Sequence[Dir] = layers.root if path.startswith(b"/") else layers.here
        if path.startswith(b"/") and not want_dir:
            source = [*source, *layers.data]
        for layer in source:
            if layer.branch.index > index:
                break
        else:
            return
        if redirect is not None and not layers.follow:
            log.warning("%r has a redirect, which the option redirect_dir=nofollow refuses", name)
            raise OSError(EPERM, os.strerror(EPERM), name)
        for layer in source:
            if layer.branch.index <= index:
                continue
            index = layer.branch.index
            step = _walk(layer, path, want_dir)
            if step.found is not None:
                yield step.found
            if step.stop:
                return
            if step.path is not path:
                redirect = path = step.path
                break  # look for another path, perhaps from the root, in the layers that are left
        else:
            return


def _walk(base: Dir, path: bytes, want_dir: bool) -> _Step:
    """Look for a name, or for an absolute path component by component, in one layer."""
    absolute = path.startswith(b"/")
    components = path[1:].split(b"/") if absolute else [path]
    stop = False
    xwhiteouts = False
    tail = path[1:] if absolute else path
    for component in components:
        rest = tail[len(component) :]
        st = base.stat(component)
        if st is None:
            return _Step(None, stop or base.aufs_hides(component), path)
        kind = base.kind(component, st)
        if kind is Kind.WHITEOUT or (kind is Kind.DIRECTORY) != bool(want_dir or rest):
            return _Step(None, True, path)  # hidden from here on; only like merges with like
        if kind is Kind.DIRECTORY:
            if not base.branch.is_last:
                found = read_dir_marks(base, component)
                xwhiteouts = found.xwhiteouts
                if found.opaque:
                    stop = True
                elif found.redirect is not None:
                    stop = stop and not found.redirect.startswith(b"/")
                    path = marks.next_path(path, found.redirect, len(path) - len(tail), rest)
        else:
            if not S_ISREG(st.st_mode):
                return _Step(None, True, path)
            last = base.branch.is_last and not base.branch.data_below
            more = None if last else read_file_marks(base, component)
            if more is None or not more.metacopy:
                return _Step(Part(base, component, st, False), True, path)
            if more.redirect is not None:
                path = marks.next_path(path, more.redirect, len(path) - len(tail), rest)
        if not rest:
            return _Step(Part(base, component, st, xwhiteouts), stop, path)
        base = base.child(component)
        tail = rest[1:]
    raise AssertionError("a path has at least one component")
