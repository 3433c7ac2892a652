"""The names and meanings of overlayfs's marks (Documentation/filesystems/overlayfs.rst), as pure rules.

Owns the on-disk vocabulary: which xattr is a mark, how nested marks are escaped, what a redirect may say.
Reading and writing marks on a branch is pyunion/branch/marks.py.
"""

from __future__ import annotations

TRUSTED = b"trusted.overlay."
USER = b"user.overlay."

OPAQUE = b"opaque"
REDIRECT = b"redirect"
METACOPY = b"metacopy"
WHITEOUT = b"whiteout"
ORIGIN = b"origin"
IMPURE = b"impure"
NLINK = b"nlink"
PROTATTR = b"protattr"

OPAQUE_YES = b"y"
# Not opaque, but its entries may be whiteouts in xattr form: empty regular files (Linux 6.7).
OPAQUE_XWHITEOUTS = b"x"

# What chattr(1) has forbidden; in this order in the mark.
APPEND = 1
IMMUTABLE = 2
_PROTECTIONS = {ord("a"): APPEND, ord("i"): IMMUTABLE}

_ESCAPE = b"overlay."

AUFS_PREFIX = b".wh."
AUFS_OPAQUE = b".wh..wh..opq"


def visible_name(name: bytes, prefix: bytes) -> bytes | None:
    """What a branch's xattr is called through the mount; None for a mark of this mount, which is not seen.

    A mark of a union inside this one is stored escaped, as PREFIXoverlay.NAME; it shows with one level removed.
    """
    if not name.startswith(prefix):
        return name
    rest = name[len(prefix) :]
    return prefix + rest[len(_ESCAPE) :] if rest.startswith(_ESCAPE) else None


def stored_name(name: bytes, prefix: bytes) -> bytes:
    """What an xattr that is named through the mount is called on the branch; the reverse of visible_name."""
    return prefix + _ESCAPE + name[len(prefix) :] if name.startswith(prefix) else name


def is_mark(name: bytes, prefix: bytes) -> bool:
    """Whether a branch's xattr is a mark of this mount, so that copy_up must not take it along."""
    return name.startswith(prefix) and not name.startswith(_ESCAPE, len(prefix))


def protection(value: bytes) -> int:
    """APPEND and IMMUTABLE as the mark protattr says them; none where it has anything else in it."""
    return sum(_PROTECTIONS[letter] for letter in set(value)) if set(value) <= _PROTECTIONS.keys() else 0


def protattr(flags: int) -> bytes:
    """The value of the mark protattr."""
    return bytes(letter for letter, flag in _PROTECTIONS.items() if flags & flag)


def valid_redirect(value: bytes) -> bool:
    """A redirect is one name, or an absolute path of names without empty, `.` or `..` parts.

    The kernel refuses empty parts only; `.` and `..` would lead out of the branch, so they are refused here.
    """
    parts = value[1:].split(b"/") if value.startswith(b"/") else [value]
    return all(part not in (b"", b".", b"..") and b"/" not in part and b"\0" not in part for part in parts)


def next_path(current: bytes, redirect: bytes, component_start: int, rest: bytes) -> bytes:
    """The path to look for in the layers below, once an entry has answered with a redirect.

    `current` is the path looked for so far, `component_start` where the answering component began in it, and
    `rest` what comes after that component (empty, or starting with a slash).
    """
    if redirect.startswith(b"/"):
        return redirect + rest
    return current[:component_start] + redirect + rest
