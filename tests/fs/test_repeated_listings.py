"""A listing that is given again is what it would be if it were made again, and counts as often."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from pyunion.fs.nodes import Directory
from pyunion.fuse import layout
from pyunion.fuse.backing import Backing
from pyunion.fuse.layout import Op
from pyunion.fuse.rawops import RawRequests
from tests.fs.conftest import Bench, Build

ROOM = 1 << 15


class Kernel:
    """Sends requests as the kernel does, and counts the references that it is given."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.raw = RawRequests(bench.fs, Backing(bench.fs.files), self._start)

    def _start(self, *_: object) -> None:
        raise AssertionError("no request here has to wait")

    def send(self, opcode: Op, node: int, body: bytes) -> bytes:
        reply = self.raw.hook(opcode, 1, node, os.geteuid(), os.getegid(), os.getpid(), body)
        assert not isinstance(reply, int), os.strerror(reply)
        return b"" if reply is None else bytes(reply)

    def list(self, directory: Directory) -> dict[bytes, int]:
        """Names and the numbers of their nodes, the dots left out."""
        reply = self.send(Op.READDIRPLUS, directory.id, struct.pack("=QQIIQII", 0, 0, ROOM, 0, 0, 0, 0))
        found, at = {}, 0
        while at < len(reply):
            (number,) = struct.unpack_from("=Q", reply, at)
            (length,) = struct.unpack_from("=I", reply, at + 128 + 16)
            name = reply[at + 152 : at + 152 + length]
            if number:
                found[name] = number
            at += (152 + length + 7) // 8 * 8
        return found


@pytest.fixture
def kernel(build: Build, tmp_path: Path) -> Kernel:
    for name in ("a", "b", "sub/c"):
        path = tmp_path / "lower/d" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return Kernel(build(writeback=False))


def test_it_counts_as_a_reference_each_time(kernel: Kernel) -> None:
    directory = kernel.bench.directory("d")
    for times in (1, 2, 3):
        found = kernel.list(directory)
        assert set(found) == {b"a", b"b", b"sub"}
        assert {kernel.raw._nodes[number].lookups for number in found.values()} == {times}


def _names(*names: bytes) -> bytes:
    return b"".join(name + b"\0" for name in names)


CHANGES: dict[str, tuple[Callable[[Kernel, Directory, dict[bytes, int]], object], set[bytes]]] = {
    "unlink": (lambda k, d, _: k.send(Op.UNLINK, d.id, _names(b"a")), {b"b", b"sub"}),
    "mkdir": (
        lambda k, d, _: k.send(Op.MKDIR, d.id, layout.MKDIR.pack(0o755, 0o22) + _names(b"new")),
        {b"a", b"b", b"new", b"sub"},
    ),
    "create": (
        lambda k, d, _: k.send(Op.CREATE, d.id, layout.CREATE.pack(os.O_RDWR, 0o100644, 0o22) + _names(b"new")),
        {b"a", b"b", b"new", b"sub"},
    ),
    "rename": (
        lambda k, d, _: k.send(Op.RENAME, d.id, layout.RENAME.pack(d.id) + _names(b"a", b"z")),
        {b"b", b"sub", b"z"},
    ),
    "forget": (lambda k, d, found: k.send(Op.FORGET, found[b"a"], layout.FORGET.pack(2)), {b"a", b"b", b"sub"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_listed_and_what_was_forgotten_is_known_again(kernel: Kernel, change: str) -> None:
    directory = kernel.bench.directory("d")
    before = kernel.list(directory)
    assert kernel.list(directory) == before
    action, expected = CHANGES[change]
    action(kernel, directory, before)
    after = kernel.list(directory)
    assert set(after) == expected
    assert all(number in kernel.raw._nodes for number in after.values())
    kernel.bench.fs.files.close_all()


def test_other_lower_branches_end_it(kernel: Kernel, tmp_path: Path) -> None:
    directory = kernel.bench.directory("d")
    assert set(kernel.list(directory)) == {b"a", b"b", b"sub"}
    (tmp_path / "lower/d/from outside").write_text("")
    fs = kernel.bench.fs
    fs.restack(fs.lowers, fs.lookup.origins, changed_outside=True)
    assert set(kernel.list(kernel.bench.directory("d"))) == {b"a", b"b", b"sub", b"from outside"}
