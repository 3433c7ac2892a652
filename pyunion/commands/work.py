"""Which work directory an upper branch was mounted with: its index may have changes that upper has not.

Owns how it is found, and what is said when it is not: nobody shall get a layer that lacks a change unawares. What is
there is not believed to belong to this upper branch unless the user or a mount says so.
"""

from __future__ import annotations

import os
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

from pyunion import board, mountinfo, preflight, users
from pyunion.branch.dirs import Branch
from pyunion.branch.handles import Origins
from pyunion.errors import ExitCode, PyunionError
from pyunion.layers import indexed
from pyunion.layers.tree import Branches, Copies, Copy


class Running(NamedTuple):
    """A union of ours that is mounted, and what its daemon says of it."""

    point: bytes
    said: dict[str, Any]


def running(upper: bytes) -> Running | None:
    """The union that has this upper branch, if pyunion has it mounted where we can see it."""
    path = os.path.realpath(upper)
    for mount in mountinfo.read():
        if mount.fstype == "fuse.pyunion":
            said = None
            with suppress(OSError):  # another user's, or just gone
                daemon = users.daemon_of(mount)
                said = None if daemon is None else board.read(daemon)
            if said is not None and said["upper"] is not None and os.fsencode(said["upper"]) == path:
                return Running(mount.point, said)
    return None


def with_copies(branches: Branches, work: bytes | None, stack: ExitStack) -> tuple[Branches, str | None]:
    """The same branches, whose union shows what the mount shows; and if it may not, a sentence that says so.

    `work` is the work directory, if that is known. Raises PyunionError and OSError.
    """
    assert branches.upper is not None
    found = indexed.with_copies(branches, work, stack)
    if not found.lowers and (changed := _count_changed(found.copies)):
        return found, _without_lower(branches.upper, changed)
    if work is None:
        for place in _beside(branches.upper.path):
            changed = _changes_in(place, found, stack)
            if changed:
                return found, _without_work(branches.upper, place, changed)
    return found, None


def refused(found: tuple[Branches, str | None]) -> Branches:
    """The branches of with_copies(). Raises PyunionError for the sentence."""
    branches, sentence = found
    if sentence is not None:
        raise PyunionError(sentence, ExitCode.USAGE)
    return branches


def known(arguments: Namespace, mounted: Running | None) -> bytes | None:
    """The one that the user names, or with which upper is mounted at this moment, by us or by the kernel."""
    if arguments.work is not None:
        return os.fsencode(arguments.work)
    if mounted is not None:
        return os.fsencode(mounted.said["work"])
    return preflight.work_of_overlay(os.fsencode(arguments.upper))


def _count_changed(copies: Copies) -> int:
    """As far as a look at them tells, without the names that they have in lower branches."""
    count = 0
    for copy in copies.values():
        st, lower = copy.dir.stat(copy.name), copy.lower
        count += st is not None and (
            (st.st_size, st.st_mtime_ns, st.st_mode, st.st_uid, st.st_gid)
            != (lower.st_size, lower.st_mtime_ns, lower.st_mode, lower.st_uid, lower.st_gid)
        )
    return count


def _beside(upper: bytes) -> Iterator[bytes]:
    """The directories next to an upper branch that have an index."""
    folder = os.path.dirname(os.path.realpath(upper))
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if os.path.isdir(os.path.join(path, b"index")) and os.path.isdir(os.path.join(path, b"work")):
            yield path


def _changes_in(work: bytes, branches: Branches, stack: ExitStack) -> int:
    """How many files an index has that upper has no name of, if it can be the index of this upper branch: then as many
    of their names are left as it says."""
    assert branches.upper is not None
    with suppress(PyunionError, OSError):  # another file system's, or none for us to read
        index = indexed.open_index(work, branches.upper, stack)
        if index is None:
            return 0
        origins = Origins(branches.lowers or [branches.upper], stack)
        copies = indexed.in_index(index, branches.upper, origins)
        alone = {key: copy for key, copy in copies.items() if _links(copy) == 1}
        if alone and indexed.any_of(branches.upper, alone):
            return 0  # it is one of the lower branches
        if not branches.lowers:
            return _count_changed(alone)
        found = indexed.names(branches._replace(copies=alone).union, alone, all_of_them=True)
        seen = Counter(name.lower for name in found if indexed.is_changed(name))
        return sum(seen[key] == copy.missing for key, copy in alone.items())
    return 0


def _links(copy: Copy) -> int:
    st = copy.dir.stat(copy.name)
    return 0 if st is None else st.st_nlink


def _without_lower(upper: Branch, changed: int) -> str:
    return (
        f"{_files(changed)} of several names changed through {os.fsdecode(upper.path)}, and not all of these names are "
        "in it; name the lower branches that it was made with by --lower"
    )


def _without_work(upper: Branch, work: bytes, changed: int) -> str:
    return (
        f"{os.fsdecode(work)} has {changed} changed {'file' if changed == 1 else 'files'} of several names, none of "
        f"which is in {os.fsdecode(upper.path)}; name the work directory of that by --work, and its lower branches by "
        "--lower (an empty directory for --work, if it never had one)"
    )


def _files(count: int) -> str:
    return f"{count} {'file was' if count == 1 else 'files were'}"
