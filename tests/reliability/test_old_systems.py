"""On a system that lacks what newer kernels have, one call or all of them, the union is the same as the kernel's.

What cannot be had without a call is told to the caller as by a file system that does not have it.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import struct
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyunion.branch.syscalls import fallocate
from tests.branches.operations import OPERATIONS, fill
from tests.harness import leaks
from tests.harness.files import RENAME_EXCHANGE, RENAME_NOREPLACE, append, outcome, renameat2, run, tree, write
from tests.harness.filesystems import loop_mounted
from tests.harness.mounts import KernelMount, Layers
from tests.harness.old_system import AFTER_4_18, MISSING, launcher, numbers
from tests.harness.snapshot import Snapshot, assert_same, snapshot
from tests.harness.union import Union
from trials import faults
from trials.operations import OPERATIONS as OPERATIONS_OF_TRIALS
from trials.operations import Operation
from trials.union import Home

_GETFLAGS = 0x80086601
_PUNCH_HOLE = 3  # with FALLOC_FL_KEEP_SIZE


def fill_more(top: Path) -> None:
    for name in ("f", "g", "h", "k", "dir/a", "dir/b", "other/c", "empty/gone", "over/x", "covered/x"):
        write(top / f"more/{name}", f"{name} " * 9000)


def _exchange(top: Path) -> object:
    said = outcome(renameat2, top / "more/f", top / "more/dir", RENAME_EXCHANGE)
    return said, tree(top / "more")


def _rename_without_replacing(top: Path) -> object:
    said = [outcome(renameat2, top / "more/g", top / "more" / name, RENAME_NOREPLACE) for name in ("h", "g-moved")]
    return said, tree(top / "more")


def _rename_over(top: Path) -> object:
    os.rename(top / "more/h", top / "more/k")
    (top / "more/empty/gone").unlink()
    os.rename(top / "more/other", top / "more/empty")
    return tree(top / "more"), (top / "more/k").read_text()[:9]


def _remove_and_replace_directories(top: Path) -> object:
    for name in ("over", "covered"):
        (top / f"more/{name}/x").unlink()
        (top / f"more/{name}").rmdir()
    (top / "more/over").mkdir()
    write(top / "more/new/y", "y")
    os.rename(top / "more/new", top / "more/covered")
    return tree(top / "more")


def _nameless(top: Path) -> object:
    def make() -> None:
        fd = os.open(top / "more", os.O_TMPFILE | os.O_RDWR, 0o640)
        directory = os.open(top / "more", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.write(fd, b"nameless")
            os.link(f"/proc/self/fd/{fd}", "named", dst_dir_fd=directory, follow_symlinks=True)
        finally:
            os.close(fd)
            os.close(directory)

    return outcome(make), tree(top / "more")


def _holes(top: Path) -> object:
    """In a lower file, and in a new one."""
    found = []
    for path in (top / "sparse/hole-first", top / "sparse/new"):
        with path.open("rb") as file:
            found.append([os.lseek(file.fileno(), 0, os.SEEK_HOLE), os.lseek(file.fileno(), 4096, os.SEEK_DATA)])
    return found


def _allocate(top: Path) -> object:
    with (top / "more/allocated").open("w+b") as file:
        said = outcome(fallocate, file.fileno(), 0, 0, 1 << 20)
        return said, outcome(fallocate, file.fileno(), _PUNCH_HOLE, 0, 4096), file.seek(0, os.SEEK_END)


def _copy_by_the_kernel(top: Path) -> object:
    with (top / "big/copy").open("rb") as source, (top / "more/target").open("wb") as target:
        copied = os.copy_file_range(source.fileno(), target.fileno(), 1 << 16)
        append(top / "more/target", "end")
        return copied, (top / "more/target").stat().st_size


def _flags(top: Path) -> object:
    with (top / "read/many/8").open("rb") as file:
        flags = bytearray(8)
        said = outcome(fcntl.ioctl, file.fileno(), _GETFLAGS, flags)
        return said, struct.unpack("=Q", flags)[0] & 0x30  # immutable, append-only


def _attributes(top: Path) -> object:
    (top / "read/many").chmod(0o2770)
    (top / "read/many/9").chmod(0o4711)
    os.chown(top / "read/link", 3, 4, follow_symlinks=False)
    os.utime(top / "read/many/10", (1, 2))
    return [oct((top / "read" / name).lstat().st_mode) for name in ("many", "many/9", "many/10", "link")]


MORE: dict[str, Callable[[Path], object]] = {
    "rename without replacing": _rename_without_replacing,
    "rename over": _rename_over,
    "directories": _remove_and_replace_directories,
    "holes": _holes,
    "nameless": _nameless,
    "allocate": _allocate,
    "copy by the kernel": _copy_by_the_kernel,
    "flags": _flags,
    "attributes": _attributes,
    "exchange": _exchange,
}


ALL = {**OPERATIONS, **MORE}
# What cannot be had without a call, and how that is told.
UNAVAILABLE: dict[str, dict[str, str]] = {
    "renameat2": {"exchange": "EINVAL"},
    "RENAME_EXCHANGE": {"exchange": "EINVAL"},
    "O_TMPFILE": {"nameless": "ENOTSUP"},
    "fallocate": {"allocate": "ENOTSUP"},
    "inode flags": {"flags": "ENOTTY"},
    "file handles": {"links": ""},  # they part at the next mount: docs/known-failures.md
}
SYSTEMS: dict[str, tuple[Sequence[str], bool]] = {
    **{f"without {name}": ((name,), False) for name in MISSING},
    "without any of them": (tuple(MISSING), False),
    "Linux 4.18": (AFTER_4_18, True),
}


def unavailable(missing: Sequence[str]) -> dict[str, str]:
    return {operation: said for name in missing for operation, said in UNAVAILABLE.get(name, {}).items()}


def do(top: Path, leave_out: Collection[str]) -> dict[str, object]:
    return {name: operation(top) for name, operation in ALL.items() if name not in leave_out}


@contextmanager
def union_of(kind: str, scratch: Path) -> Iterator[Union]:
    """On XFS, which has everything that can be missing."""
    with loop_mounted("xfs", scratch / kind) as disk:
        (disk / "union").mkdir()
        made = Union(disk / "union", kind)
        made.compare_with_kernel = False  # done here with the index, which counts links
        fill(made.low)
        fill_more(made.low)
        try:
            yield made
        finally:
            made.clean_up()


def view(top: Path) -> Snapshot:
    return snapshot(top, times=False)


@functools.cache
def by_the_kernel(leave_out: frozenset[str]) -> tuple[dict[str, object], Snapshot]:
    """The results of the operations on overlayfs, and what is there then."""
    scratch = leaks.make_scratch()
    with union_of("kernel", scratch) as union:
        union.mount("index=on")
        results = do(union.at, leave_out)
        seen = view(union.at)
    leaks.remove_scratch(scratch)
    return results, seen


@pytest.mark.usefixtures("_can_mount")
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_union_on_an_old_system_is_the_kernels(scratch: Path, system: str) -> None:
    missing, old_fuse = SYSTEMS[system]
    told = unavailable(missing)
    results, expected = by_the_kernel(frozenset(told))
    with union_of("pyunion", scratch) as union:
        union.daemon.through = launcher(missing, old_fuse=old_fuse)
        union.mount()
        if old_fuse:
            assert "granted by the kernel: DONT_MASK, PARALLEL_DIROPS\n" in union.daemon.log()
        assert do(union.at, told) == results
        assert_same(view(union.at), expected, "pyunion | kernel")
        for name, error in told.items():
            if error:
                said = ALL[name](union.at)
                assert isinstance(said, tuple)
                assert said[0] == error
        before = view(union.at)
        union.remount()
        assert_same(before, view(union.at), "before a remount | after it")
        union.unmount()
        kernel = KernelMount(union.at)
        kernel.start(Layers([union.low, union.low2, union.low3], union.top, union.work), ["index=on"])
        try:
            assert_same(before, view(union.at), "pyunion | kernel, of the same branches")
        finally:
            kernel.stop()


_CALL = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
for number, argument, value in [map(int, rule.split(":")) for rule in sys.argv[1:]]:
    given = [ctypes.c_long(value if at == argument else -1) for at in range(6)]
    print(libc.syscall(ctypes.c_long(number), *given), ctypes.get_errno())
"""


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_is_missing(name: str) -> None:
    calls = [f"{numbers()[one.call]}:{one.argument}:{one.value}" for one in MISSING[name]]
    said = run(*launcher([name]), sys.executable, "-c", _CALL, *calls)
    assert said.splitlines() == [f"-1 {one.error}" for one in MISSING[name]]


EXCHANGING = [one for one in OPERATIONS_OF_TRIALS if one.name.endswith("over a whiteout") or "rmdir" in one.name]


@pytest.mark.parametrize("operation", EXCHANGING, ids=lambda operation: operation.name)
def test_an_exchange_in_steps_is_undone_when_one_fails(home: Home, operation: Operation) -> None:
    home.missing = ("RENAME_EXCHANGE", "RENAME_WHITEOUT")
    try:
        tries = list(faults.walk(home, operation, [errno.ENOSPC]))
    finally:
        home.missing = ()
    assert tries
    assert [one for one in tries if one.lost] == []
