"""Branches that somebody has made to do harm, as hypothesis makes them: any names, kinds and marks.

Knows how such branches are written, and nothing of who reads them.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

BRANCHES = 4
has_control_characters = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]").search


class Thing(NamedTuple):
    """An entry of a branch with its marks."""

    branch: int
    path: bytes
    kind: str
    marks: dict[bytes, bytes]

    def put(self, base: Path) -> None:
        put(os.fsencode(base / f"branch{self.branch}") + b"/" + self.path, self.kind, self.marks)


def put(path: bytes, kind: str, marks: dict[bytes, bytes]) -> None:
    """Make an object with marks, as far as that can be."""
    with suppress(OSError):  # something that was made before is in the way
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _MAKERS[kind](path)
    for mark, value in marks.items():
        with suppress(OSError):  # only files and directories have some kinds
            os.setxattr(path, b"trusted.overlay." + mark, value, follow_symlinks=False)


def _file(path: bytes) -> None:
    with open(path, "xb") as file:
        file.write(b"inside")


_MAKERS: dict[str, Any] = {
    "file": _file,
    "empty": lambda path: os.close(os.open(path, os.O_CREAT | os.O_EXCL)),
    "directory": os.mkdir,
    "whiteout": lambda path: os.mknod(path, 0o20000, 0),
    "device": lambda path: os.mknod(path, 0o20000, os.makedev(1, 3)),
    "fifo": os.mkfifo,
    "out": lambda path: os.symlink("../outside", path),
    "far out": lambda path: os.symlink("/etc", path),
    "link": lambda path: os.link(os.path.join(os.path.dirname(path), b"a"), path, follow_symlinks=False),
    "itself": lambda path: os.symlink(os.path.basename(path), path),
}

_names = st.sampled_from(
    [b"a", b"b", b"c", b".wh.a", b".wh.", b".wh...", b".wh..wh..opq", b"...", b"\xff\n\x1b", b"n" * 255]
)
_paths = st.lists(_names, min_size=1, max_size=3).map(b"/".join)
_redirects = st.one_of(
    _names,
    _paths.map(lambda path: b"/" + path),
    st.sampled_from([b"", b"/", b"..", b"/..", b"../outside", b"/../outside", b"/a/../../outside", b"."]),
    st.sampled_from([b"a/b", b"//a", b"/a/b/", b"/outside", b"a\0b", b"/etc", b"x" * 300]),
    st.binary(max_size=20),
)
_anything = st.binary(max_size=40)
_marks = st.fixed_dictionaries(
    {},
    optional={
        b"redirect": _redirects,
        b"metacopy": st.one_of(st.just(b""), _anything),
        b"opaque": st.one_of(st.sampled_from([b"y", b"x", b"n"]), _anything),
        b"origin": st.one_of(_anything, st.binary(max_size=30).map(lambda tail: b"\x00\xfb\x1d\x00\x01" + tail)),
        b"whiteout": _anything,
        b"protattr": _anything,
        b"nlink": st.one_of(st.sampled_from([b"U+999999999999", b"L-9", b"U"]), _anything),
    },
)
_places = st.one_of(st.just(b""), _paths, _paths)  # the branch's root among them
things = st.lists(
    st.builds(Thing, st.integers(0, BRANCHES - 1), _places, st.sampled_from(list(_MAKERS)), _marks), max_size=14
)
# Entries of WORK/index, with what they say of their links.
index_entries = st.dictionaries(
    st.one_of(st.binary(min_size=1, max_size=40).map(lambda name: name.hex().encode()), _names),
    st.tuples(st.sampled_from(["file", "directory", "whiteout", "far out"]), _marks),
    max_size=4,
)
