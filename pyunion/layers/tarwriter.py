"""A layer as a tar archive, the same bytes for the same layer.

Owns what tarfile does not have: data are streamed from where they are, holes are kept (GNU's sparse format 1.0 in pax
headers, as tar(1) and Go write and read it), times are to the nanosecond, and xattrs are SCHILY.xattr records.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IMODE
from typing import NamedTuple

from pyunion.branch import objects
from pyunion.errors import PyunionError
from pyunion.layers.items import Item
from pyunion.layers.streams import Sink
from pyunion.layers.tree import Entry
from pyunion.union import marks

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_NS = 1_000_000_000
# Holes that save less than this are written as zeros, for readers that know no sparse files.
_WORTH_IT = 1 << 20
# What a sparse member may hold: a size beyond that of the plain header is read wrongly by tarfile, for one.
_MOST_SPARSE = 8 << 30
_TYPES = {
    S_IFREG: tarfile.REGTYPE,
    S_IFDIR: tarfile.DIRTYPE,
    S_IFLNK: tarfile.SYMTYPE,
    S_IFCHR: tarfile.CHRTYPE,
    S_IFBLK: tarfile.BLKTYPE,
    S_IFIFO: tarfile.FIFOTYPE,
}
XATTR = "SCHILY.xattr."


class _Extent(NamedTuple):
    offset: int
    length: int


class TarWriter:
    """Writes the members of one archive."""

    def __init__(self, sink: Sink, newest: int | None = None) -> None:
        """`newest` is the latest time that a member may have, in seconds (SOURCE_DATE_EPOCH); None: all are kept."""
        self._sink = sink
        self._newest = newest
        self._links: dict[tuple[int, int], str] = {}

    def write(self, items: Iterable[Item]) -> None:
        """All members and the end of the archive. Raises OSError and PyunionError."""
        for item in items:
            if item.entry is None:
                self._head(tarfile.TarInfo(_text(item.path)))
            else:
                self._object(item.path, item.entry)
        self._sink.write(bytes(2 * _BLOCK))

    def _object(self, path: bytes, entry: Entry) -> None:
        st = entry.st
        member = tarfile.TarInfo(_text(path))
        member.type = _TYPES[S_IFMT(st.st_mode)]
        member.mode, member.uid, member.gid = S_IMODE(st.st_mode), st.st_uid, st.st_gid
        self._time(member, st.st_mtime_ns)
        if st.st_nlink > 1 and not entry.is_dir:
            first = self._links.setdefault((st.st_dev, st.st_ino), member.name)
            if first != member.name:
                member.type, member.linkname = tarfile.LNKTYPE, first
                self._head(member)
                return
        self._xattrs(member, entry)
        if member.isreg():
            self._file(member, entry)
            return
        if member.issym():
            member.linkname = _text(objects.readlink(entry.dir.fd(), entry.name))
        elif member.isdev():
            member.devmajor, member.devminor = os.major(st.st_rdev), os.minor(st.st_rdev)
        self._head(member)

    def _time(self, member: tarfile.TarInfo, mtime_ns: int) -> None:
        if self._newest is not None and mtime_ns > self._newest * _NS:
            mtime_ns = self._newest * _NS
        seconds, rest = divmod(abs(mtime_ns), _NS)
        member.mtime = -seconds if mtime_ns < 0 else seconds
        if rest:
            sign = "-" if mtime_ns < 0 else ""
            _add(member, mtime=f"{sign}{seconds}.{rest:09}".rstrip("0"))

    def _xattrs(self, member: tarfile.TarInfo, entry: Entry) -> None:
        prefix = entry.dir.branch.prefix_to_read
        fd = entry.dir.fd()
        for key in sorted(objects.list_xattr(fd, entry.name)):
            shown = marks.visible_name(key, prefix)
            if shown is None or shown == b"security.selinux":  # the label is the machine's
                continue
            if b"=" in shown:
                raise PyunionError(f"{member.name} has an extended attribute {_text(shown)!r}, which tar cannot hold")
            _add(member, **{XATTR + _text(shown): _text(objects.get_xattr(fd, entry.name, key))})

    def _file(self, member: tarfile.TarInfo, entry: Entry) -> None:
        assert entry.data is not None
        directory, name = entry.data
        fd = objects.open_file(directory.fd(), name, os.O_RDONLY)
        try:
            size = os.fstat(fd).st_size
            extents = [_Extent(start, end - start) for start, end in objects.data_extents(fd, size)]
            table = b""
            data = sum(extent.length for extent in extents)
            if size - data >= _WORTH_IT and data < _MOST_SPARSE:
                table = _sparse(member, extents, size)
            else:
                extents = [_Extent(0, size)]
            member.size = len(table) + sum(extent.length for extent in extents)
            self._head(member)
            self._sink.write(table)
            for extent in extents:
                self._data(fd, extent, member.name)
            self._sink.write(bytes(-member.size % _BLOCK))
        finally:
            os.close(fd)

    def _data(self, fd: int, extent: _Extent, name: str) -> None:
        offset, left = extent
        while left:
            data = os.pread(fd, min(left, _CHUNK), offset)
            if not data:
                raise PyunionError(f"{name} was cut short while it was read; nothing may change a layer meanwhile")
            self._sink.write(data)
            offset += len(data)
            left -= len(data)

    def _head(self, member: tarfile.TarInfo) -> None:
        self._sink.write(member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))


def _add(member: tarfile.TarInfo, **records: str) -> None:
    member.pax_headers = {**member.pax_headers, **records}


def _text(data: bytes) -> str:
    """As tarfile takes it, whatever the locale."""
    return data.decode("utf-8", "surrogateescape")


def _sparse(member: tarfile.TarInfo, extents: list[_Extent], size: int) -> bytes:
    """Turn a member into a sparse one; returns the table that comes before its data."""
    told = {"major": "1", "minor": "0", "name": member.name, "realsize": str(size)}
    _add(member, **{f"GNU.sparse.{key}": value for key, value in told.items()})
    folder, _, base = member.name.rpartition("/")
    member.name = f"{folder or '.'}/GNUSparseFile.0/{base}"
    if not extents or sum(extents[-1]) < size:
        extents.append(_Extent(size, 0))
    table = f"{len(extents)}\n" + "".join(f"{extent.offset}\n{extent.length}\n" for extent in extents)
    return table.encode() + bytes(-len(table) % _BLOCK)
