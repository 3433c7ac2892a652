"""What differs between two objects of which one is a copy of the other, changed or not."""

from __future__ import annotations

import os
from stat import S_IFMT, S_IMODE, S_ISREG

from pyunion.branch import objects
from pyunion.branch.dirs import Dir
from pyunion.layers.tree import Entry
from pyunion.union import marks

_CHUNK = 1 << 20


def stat_differences(after: Entry, old: os.stat_result) -> tuple[str, ...]:
    """What a look at the attributes tells. A directory's size and time say nothing: they move with any entry."""
    new = after.st
    if S_IFMT(new.st_mode) != S_IFMT(old.st_mode):
        return ("type",)
    what = []
    if not after.is_dir and new.st_mtime_ns != old.st_mtime_ns:
        what.append("times" if after.metacopy else "content")
    elif not after.is_dir and new.st_size != old.st_size:
        what.append("content")
    if S_IMODE(new.st_mode) != S_IMODE(old.st_mode):
        what.append("mode")
    if (new.st_uid, new.st_gid) != (old.st_uid, old.st_gid):
        what.append("owner")
    if new.st_rdev != old.st_rdev:
        what.append("device")
    return tuple(what)


def differences(after: Entry, before: Entry) -> tuple[str, ...]:
    """What a look at the metadata tells."""
    what = stat_differences(after, before.st)
    if what != ("type",) and _xattrs(after.dir, after.name) != _xattrs(before.dir, before.name):
        what += ("xattrs",)
    return what


def _xattrs(directory: Dir, name: bytes) -> dict[bytes, bytes]:
    """What the union shows of an object's extended attributes."""
    prefix = directory.branch.prefix_to_read
    fd = directory.fd()
    return {
        shown: objects.get_xattr(fd, name, key)
        for key in objects.list_xattr(fd, name)
        if (shown := marks.visible_name(key, prefix)) is not None
    }


def same_data(one: Entry, other: Entry) -> bool:
    """Whether two files of one size have the same data. They are read, as a time can be set back."""
    if one.data == other.data or one.data is None or other.data is None or not S_ISREG(one.st.st_mode):
        return one.data == other.data or not S_ISREG(one.st.st_mode)
    fds = []
    try:
        for directory, name in (one.data, other.data):
            fds.append(objects.open_file(directory.fd(), name, os.O_RDONLY))
        offset = 0
        while True:
            ours, theirs = (os.pread(fd, _CHUNK, offset) for fd in fds)
            if ours != theirs or not ours:
                return ours == theirs
            offset += len(ours)
    finally:
        for fd in fds:
            os.close(fd)
