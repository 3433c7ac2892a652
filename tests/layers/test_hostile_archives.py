"""Archives that want to do harm, as hypothesis makes them: whatever a layer holds, nothing outside of the store is made
or changed, and what is refused leaves nothing."""

from __future__ import annotations

import os
import tarfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import leaks
from tests.harness.files import run
from tests.harness.warm import pyunion as command
from tests.layers import handmade
from tests.reliability.hostile import has_control_characters

EXAMPLES = max(40, settings().max_examples // 20)  # each is a process
_DEEPEST = 300
_OWN = b"trusted.overlay."
_NESTED = b"trusted.overlay.overlay."


class Member(NamedTuple):
    """One of an archive; `{base}` in a path is the directory that nothing may be done in."""

    name: str
    kind: bytes
    target: str
    numbers: tuple[int, int]
    xattrs: dict[str, str]
    size: int  # that the header of a file says, if it is not that of its data

    def put(self, archive: tarfile.TarFile, base: Path) -> None:
        headers = {f"SCHILY.xattr.{key}": value for key, value in self.xattrs.items()}
        if self.size:
            headers["size"] = str(self.size)
        fields: dict[str, Any] = {
            "type": self.kind, "linkname": self.target.replace("{base}", str(base)), "pax_headers": headers,
            "devmajor": self.numbers[0], "devminor": self.numbers[1],
        }  # fmt: skip
        content = b"data" if self.kind == tarfile.REGTYPE else b""
        handmade.add(archive, self.name.replace("{base}", str(base)), content, **fields)


_parts = st.sampled_from(
    [*("a", "b", "..", ".", "", "\x1b[2J\n"), *(f".wh.{end}" for end in ("a", "", ".", "..", ".wh..opq", ".wh.plnk"))]
)
_paths = st.one_of(
    st.lists(_parts, min_size=1, max_size=4).map("/".join),
    st.sampled_from(["{base}/victim", "../victim", "/", "a/../../victim", "n" * 300, "a\udcff", "/".join("d" * 3000)]),
)
_kinds = st.sampled_from(
    [
        *(tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE),
        *(tarfile.FIFOTYPE, tarfile.CONTTYPE, b"Z"),
    ]
)
_targets = st.one_of(_paths, st.sampled_from(["{base}", "{base}/victim", "../../../victim", "/etc"]))
_xattrs = st.dictionaries(
    st.sampled_from(
        [
            *(f"trusted.overlay.{mark}" for mark in ("redirect", "metacopy", "opaque", "origin", "whiteout")),
            *("user.overlay.opaque", "user.x", "security.capability", "system.posix_acl_access", "x", "trusted."),
        ]
    ),
    st.sampled_from(["", "y", "/../victim", "/a", "x" * 70_000]),
    max_size=2,
)
_numbers = st.sampled_from([(0, 0), (1, 3), (4095, 1 << 19), (1 << 20, 1 << 20)])
_sizes = st.sampled_from([0, 0, 0, 0, 1, 1 << 40, 1 << 70, -1])
_members = st.builds(Member, _paths, _kinds, _targets, _numbers, _xattrs, _sizes)
_layers = st.lists(st.lists(_members, min_size=1, max_size=6), min_size=1, max_size=2)


@given(layers=_layers)
@settings(max_examples=EXAMPLES)
def test_no_archive_does_anything_outside_of_the_store(layers: list[list[Member]]) -> None:
    base = leaks.make_scratch()
    try:
        (base / "victim").write_text("precious")

        image = handmade.layout(base / "image", [handmade.layer(partial(_put, members, base)) for members in layers])
        done = command("import", image, base / "dest")
        assert (base / "victim").read_text() == "precious"
        assert (base / "victim").stat().st_nlink == 1
        assert set(os.listdir(base)) <= {"victim", "image", "dest"}
        if done.returncode == 0:
            assert_harmless(base / "dest/layers")
        else:
            assert (done.returncode, done.stdout, done.stderr[:9]) == (1, "", "pyunion: "), done.stderr[-3000:]
            assert done.stderr.count("\n") == 1
            assert not has_control_characters(done.stderr)
            assert not (base / "dest").exists()
    finally:
        run("rm", "-rf", base)  # it may be too deep for others


def _put(members: list[Member], base: Path, archive: tarfile.TarFile) -> None:
    for member in members:
        member.put(archive, base)


def assert_harmless(layers: Path) -> None:
    """No marks but those that `.wh.` names stand for."""
    for where, directories, names in os.walk(os.fsencode(layers)):
        if where.count(b"/") > _DEEPEST:
            del directories[:]  # beyond PATH_MAX nothing has a path
        for name in (*directories, *names):
            path = os.path.join(where, name)
            for key in map(os.fsencode, os.listxattr(path, follow_symlinks=False)):
                if key.startswith(_OWN) and not key.startswith(_NESTED):
                    assert (key, os.getxattr(path, key, follow_symlinks=False)) == (_OWN + b"opaque", b"y")
