"""Lower files that are open without a descriptor: when they get one, and what becomes of those that cannot."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from pyunion.fs.nodes import File
from pyunion.fs.unopened import FIRST, LATER_S
from tests.fs.conftest import ME, Bench, Build
from tests.harness.files import write


@pytest.fixture
def bench(build: Build, tmp_path: Path) -> Bench:
    write(tmp_path / "lower/f", "old")
    return build(opens_later=True)


def begin(bench: Bench, file: File) -> int:
    handle = bench.fs.files.open_without_descriptor(file, os.O_RDONLY)
    assert handle >= FIRST
    return handle


def descriptors(file: File) -> int:
    return len(file.fds or ())


async def text(bench: Bench, handle: int) -> bytes:
    return bytes(await bench.fs.files.read(handle, 0, 100))


def replace(bench: Bench) -> None:
    write(bench.lower / "other", "new").rename(bench.lower / "f")


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)  # all below it are in use
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_all_who_have_it_open_share_the_descriptor_of_the_first_read(bench: Bench) -> None:
    file = bench.file("f")
    handles = [begin(bench, file), begin(bench, file)]
    assert descriptors(file) == 0
    assert file.is_open
    assert len(bench.fs.files) == 2
    assert [await text(bench, handle) for handle in handles] == [b"old", b"old"]
    assert descriptors(file) == 1
    assert len(bench.fs.files) == 2
    seen = []
    for handle in handles:
        seen.append(file.is_open)
        bench.fs.files.release(handle)
    assert [*seen, file.is_open] == [True, True, False]
    assert len(bench.fs.files) == 0


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_RDONLY | os.O_DIRECT])
async def test_who_does_not_read_by_the_cache_has_a_descriptor_at_once(bench: Bench, flags: int) -> None:
    assert bench.fs.files.open_without_descriptor(bench.file("f"), flags) == 0


async def test_so_has_a_file_of_upper(bench: Bench) -> None:
    write(bench.upper / "g", "text")
    assert bench.fs.files.open_without_descriptor(bench.file("g"), os.O_RDONLY) == 0


async def test_what_stays_open_is_opened_after_a_while(
    bench: Bench, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    file = bench.file("f")
    nursery.start_soon(bench.fs.files.unopened.open_later)
    for _ in range(2):  # the task goes on
        handle = begin(bench, file)
        await trio.sleep(2 * LATER_S)
        assert descriptors(file) == 1
        bench.fs.files.release(handle)
        assert descriptors(file) == 0
    handle = begin(bench, file)
    await trio.sleep(2 * LATER_S)
    replace(bench)
    assert await text(bench, handle) == b"old"
    bench.fs.files.release(handle)


async def test_it_is_opened_before_the_branches_change(bench: Bench) -> None:
    file = bench.file("f")
    handle = begin(bench, file)
    bench.fs.restack(bench.fs.lowers, bench.fs.lookup.origins)
    replace(bench)
    assert await text(bench, handle) == b"old"
    bench.fs.files.release(handle)


@pytest.mark.parametrize("gone", ["the file", "its directory"])
async def test_what_is_gone_from_the_branch_is_not_taken_for_what_comes_there(
    build: Build, tmp_path: Path, gone: str
) -> None:
    path = write(tmp_path / "lower/d/f", "old")
    bench = build(opens_later=True)
    handle = begin(bench, bench.file("d/f"))
    bench.fs.cache.close_all()
    if gone == "its directory":
        path.parent.rename(tmp_path / "d")
    else:
        path.rename(tmp_path / "f")
    bench.fs.files.unopened.open_all()
    write(path, "new")
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        await text(bench, handle)
    bench.fs.files.release(handle)


async def test_without_descriptors_it_is_opened_when_there_are_some_again(bench: Bench) -> None:
    file = bench.file("f")
    handle = begin(bench, file)
    bench.fs.cache.close_all()
    with no_descriptors_left():
        bench.fs.files.unopened.open_all()
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            await text(bench, handle)
        assert bench.fs.files.open_without_descriptor(file, os.O_RDONLY) == 0  # so that open(2) fails
    assert descriptors(file) == 0
    bench.fs.files.unopened.open_all()
    assert descriptors(file) == 1
    assert await text(bench, handle) == b"old"
    bench.fs.files.release(handle)


@pytest.mark.parametrize("metacopy", [True, False])
async def test_it_reads_what_was_written_before_its_first_read(build: Build, tmp_path: Path, metacopy: bool) -> None:
    write(tmp_path / "lower/f", "old")
    bench = build(opens_later=True, metacopy=metacopy)
    file = bench.file("f")
    handle = begin(bench, file)
    await bench.fs.copier.metadata(file)
    writer = await bench.fs.files.open(file, os.O_WRONLY, ME)
    bench.fs.files.write(writer, 0, b"new")
    assert await text(bench, handle) == b"new"
    for fd in (writer, handle):
        bench.fs.files.release(fd)


async def test_a_metadata_only_copy_is_read_where_its_data_are(build: Build, tmp_path: Path) -> None:
    write(tmp_path / "lower/f", "old")
    bench = build(opens_later=True, metacopy=True)
    file = bench.file("f")
    handle = begin(bench, file)
    await bench.fs.copier.metadata(file)
    assert file.data is not None
    await bench.fs.remove.file(bench.directory(""), b"f")
    assert await text(bench, handle) == b"old"
    bench.fs.files.release(handle)


async def test_pages_are_stale_after_a_direct_write_beside_it(bench: Bench) -> None:
    file = bench.file("f")
    handle = begin(bench, file)
    direct = await bench.fs.files.open(file, os.O_RDWR | os.O_DIRECT, ME)
    assert bench.fs.files.leaves_stale(direct) == file.id
    bench.fs.files.release(handle)
    assert bench.fs.files.leaves_stale(direct) is None
    bench.fs.files.release(direct)
