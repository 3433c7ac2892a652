"""A tar archive that may be hostile, read once from its start to its end.

Owns the limits of what a header may ask for, and that an archive which is not whole is refused. The parsing is
tarfile's; what a member may do to a directory is pyunion/layers/unpack.py.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from pyunion.errors import PyunionError
from pyunion.layers.streams import Source

# A path, a link and the xattrs of one member; each xattr is at most 64 KiB.
_MOST_HEADER = 4 << 20
_CHUNK = 1 << 20
_NS = 1_000_000_000
_MOST_TIME = 1 << 62
_DAMAGED = (tarfile.TarError, ValueError, OverflowError, IndexError, KeyError, TypeError)


class Extent(NamedTuple):
    """Data of a member: where they belong in the file."""

    offset: int
    length: int


class TarReader:
    """The members, one after the other; the data of each are read before the next one comes, or passed over."""

    def __init__(self, source: Source) -> None:
        self._stream = _Stream(source)

    def __iter__(self) -> Iterator[tarfile.TarInfo]:
        """Raises PyunionError for an archive that is damaged or asks for too much."""
        archive = self._tried(self._open)
        while (member := self._tried(archive.next)) is not None:
            archive.members.clear()  # tarfile remembers them all
            yield member
        self._stream.check_end()

    def _open(self) -> Any:
        return tarfile.TarFile(fileobj=self._stream, encoding="utf-8", errors="surrogateescape")  # type: ignore[arg-type]

    def _tried(self, read: Callable[[], Any]) -> Any:
        self._stream.begin_header()
        try:
            return read()
        except _DAMAGED as error:
            raise PyunionError(f"this is no tar archive, or it is damaged: {error!r}") from None

    def data(self, member: tarfile.TarInfo) -> Iterator[tuple[int, bytes]]:
        """The data of a regular file, piece by piece, each with its place in the file."""
        for extent in extents(member):
            offset, left = extent
            while left:
                data = self._stream.read_data(min(left, _CHUNK))
                if not data:
                    raise PyunionError(f"the archive ends within {member.name}")
                yield offset, data
                offset += len(data)
                left -= len(data)


class _Stream:
    """The file that tarfile sees: it goes forward only, and a header is no longer than it may be."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._position = 0
        self._left = 0
        self._last = b""

    def begin_header(self) -> None:
        self._left = _MOST_HEADER

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> None:
        if position < self._position:
            raise PyunionError("the archive says that one of its members is smaller than nothing; it is hostile")
        while self._position < position:
            if not self.read_data(min(position - self._position, _CHUNK)):
                raise PyunionError("the archive ends within one of its members")

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise PyunionError(f"the archive has a header of more than {_MOST_HEADER >> 20} MiB; it is hostile")
        pieces = []
        while size and (data := self._source.read(size)):
            pieces.append(data)
            size -= len(data)
        data = b"".join(pieces)
        self._position += len(data)
        self._last = data
        return data

    def read_data(self, size: int) -> bytes:
        data = self._source.read(size)
        self._position += len(data)
        return data

    def check_end(self) -> None:
        """tarfile takes a header that it cannot read for the end."""
        if self._last.strip(b"\0"):
            raise PyunionError("the archive is damaged: there is something between its members that is no header")


def extents(member: tarfile.TarInfo) -> list[Extent]:
    """Where a file has data; the rest of it are holes. Raises PyunionError where they are out of order or beyond it."""
    told: Any = member.sparse  # tarfile's list of (offset, size)
    if told is None:
        return [Extent(0, member.size)]
    found = [Extent(*each) for each in told]
    end = 0
    for extent in found:
        if extent.offset < end or extent.length < 0:
            raise PyunionError(f"{member.name} is a sparse file whose data overlap; the archive is hostile")
        end = sum(extent)
    if end > member.size:
        raise PyunionError(f"{member.name} is a sparse file with data beyond its end; the archive is hostile")
    return found


def time_ns(member: tarfile.TarInfo) -> int:
    """When a member was changed; tarfile's float is not exact to the nanosecond."""
    try:
        seconds = Decimal(str(member.pax_headers.get("mtime", member.mtime)))
        return max(-_MOST_TIME, min(_MOST_TIME, int(seconds * _NS)))
    except (InvalidOperation, ValueError, OverflowError):
        return 0


def parts(name: str, what: str) -> list[bytes]:
    """The names on the way to a member from the root of the layer; none for the root itself.

    Raises PyunionError for a path that leads out of the layer.
    """
    path = name.encode("utf-8", "surrogateescape")
    found = [part for part in path.split(b"/") if part not in (b"", b".")]
    if path.startswith(b"/") or b".." in found or b"\0" in path:
        raise PyunionError(f"{what} {os.fsdecode(path)!r} leads out of the layer; the archive is hostile")
    return found

