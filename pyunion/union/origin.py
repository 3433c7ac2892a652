"""The kernel's encoding of a file handle (fs/overlayfs/overlayfs.h, struct ovl_fb), as pure rules.

A copied-up object says by it which lower object it comes from: its inode number stays that one's, and the links of a
lower file find their common copy in the index. Making and opening handles is pyunion/branch/handles.py.
"""

from __future__ import annotations

import struct
import sys
from typing import NamedTuple

_HEADER = struct.Struct("=BBBBB16s")
_VERSION = 0
_MAGIC = 0xFB
_BIG_ENDIAN = 1
_ANY_ENDIAN = 2
_PATH_UPPER = 4
_KNOWN_FLAGS = _BIG_ENDIAN | _ANY_ENDIAN | _PATH_UPPER
_CPU_ENDIAN = _BIG_ENDIAN if sys.byteorder == "big" else 0


class Origin(NamedTuple):
    """A file handle together with the file system that it is good for."""

    type: int
    uuid: bytes  # 16 bytes, zero where the file system has none
    fid: bytes


def encode(origin: Origin) -> bytes:
    """The value of trusted.overlay.origin."""
    length = _HEADER.size + len(origin.fid)
    return _HEADER.pack(_VERSION, _MAGIC, length, _CPU_ENDIAN, origin.type, origin.uuid) + origin.fid


def decode(value: bytes) -> Origin | None:
    """The handle in a value; None for "copied up, but from where is not known" and for what is no such value."""
    if len(value) < _HEADER.size:
        return None
    version, magic, length, flags, kind, uuid = _HEADER.unpack_from(value)
    if magic != _MAGIC or version > _VERSION or flags & ~_KNOWN_FLAGS or length > len(value) or length < _HEADER.size:
        return None
    if not flags & _ANY_ENDIAN and flags & _BIG_ENDIAN != _CPU_ENDIAN:
        return None
    return Origin(kind, uuid, value[_HEADER.size : length])


def index_name(value: bytes) -> bytes:
    """The name under which the copy of a hard-linked lower file is in WORK/index."""
    return value.hex().encode("ascii")


def link_offset(value: bytes, upper_links: int, lower_links: int) -> int | None:
    """How many more links the union shows than the upper inode has, from trusted.overlay.nlink; None for no such value.

    `U+1` counts from the links of the upper inode, `L+1` from those of the lower one.
    """
    base = {b"U": upper_links, b"L": lower_links}.get(value[:1])
    if base is None or value[1:2] not in (b"+", b"-") or not value[2:].isdigit():
        return None
    links = base + int(value[1:])
    return links - upper_links if links > 0 else None


def from_upper(offset: int) -> bytes:
    """The value of trusted.overlay.nlink that stays true while upper's link count changes with the union's."""
    return b"U%+d" % offset


def from_lower(offset: int) -> bytes:
    """The value of trusted.overlay.nlink that stays true while names of a lower file are linked into upper."""
    return b"L%+d" % offset
