"""copy_up against everything that may happen while its worker thread copies: one copy, in the right place.

The thread is held at its start by a gate, so that each interleaving is made on purpose.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from pyunion.branch import copyup
from pyunion.fs import waiting
from tests.fs.conftest import ME, Build


class Gate:
    """Stops the copying thread until it is opened, and counts the copies."""

    def __init__(self) -> None:
        self.copies = 0
        self.started = trio.Event()
        self._open = threading.Event()

    def release(self) -> None:
        self._open.set()

    def hold(self) -> None:
        self.copies += 1
        trio.from_thread.run_sync(self.started.set)
        assert self._open.wait(20), "nobody opened the gate"


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    original = copyup.stage_file

    def held(*arguments: object) -> None:
        gate.hold()
        original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(copyup, "stage_file", held)
    monkeypatch.setattr(waiting, "LITTLE", -1)  # no file is so small that it is copied without a thread
    yield gate
    gate.release()


def lower_file(base: Path) -> None:
    (base / "lower/d").mkdir()
    (base / "lower/d/f").write_bytes(b"lower data")


async def test_many_writers_of_one_file_make_one_copy(build: Build, gate: Gate, tmp_path: Path) -> None:
    lower_file(tmp_path)
    bench = build()
    file = bench.file("d/f")
    opened: list[int] = []

    async def writer() -> None:
        opened.append(await bench.fs.files.open(file, os.O_RDWR, ME))

    async with trio.open_nursery() as nursery:
        for _ in range(32):
            nursery.start_soon(writer)
        await gate.started.wait()
        gate.release()
    assert (gate.copies, len(opened)) == (1, 32)
    for number, fd in enumerate(opened):
        bench.fs.files.write(fd, number, b"%d" % (number % 10))
    assert (bench.upper / "d/f").read_bytes() == b"01234567890123456789012345678901"
    assert (bench.lower / "d/f").read_bytes() == b"lower data"
    assert len(bench.fs.copier.locks) == 0


async def test_unlink_during_the_copy_leaves_a_nameless_file(build: Build, gate: Gate, tmp_path: Path) -> None:
    lower_file(tmp_path)
    bench = build()
    file = bench.file("d/f")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.fs.copier.data, file)
        await gate.started.wait()
        await bench.fs.remove.file(bench.directory("d"), b"f")
        gate.release()
    fd = await bench.fs.files.open(file, os.O_RDWR, ME)
    bench.fs.files.write(fd, 0, b"UPPER")
    assert bytes(await bench.fs.files.read(fd, 0, 100)) == b"UPPER data"
    assert os.fstat(fd).st_nlink == 0
    assert [entry.name for entry in (bench.upper / "d").iterdir()] == ["f"]
    assert (bench.upper / "d/f").is_char_device()  # the whiteout
    assert not [name for name in os.listdir(bench.work / "work") if not _is_whiteout(bench.work / "work" / name)]


async def test_the_copy_goes_where_the_directory_is_by_then(build: Build, gate: Gate, tmp_path: Path) -> None:
    lower_file(tmp_path)
    bench = build()
    file = bench.file("d/f")
    root = bench.directory("")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.fs.copier.data, file)
        await gate.started.wait()
        await bench.fs.rename.rename(root, b"d", root, b"moved", 0)
        gate.release()
    assert (bench.upper / "moved/f").read_bytes() == b"lower data"
    assert os.getxattr(bench.upper / "moved", "trusted.overlay.redirect") == b"d"
    assert bench.file("moved/f") is file


async def test_a_reader_goes_on_by_its_descriptor(build: Build, gate: Gate, tmp_path: Path) -> None:
    lower_file(tmp_path)
    bench = build()
    file = bench.file("d/f")
    reader = await bench.fs.files.open(file, os.O_RDONLY, ME)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.fs.copier.data, file)
        await gate.started.wait()
        assert bytes(await bench.fs.files.read(reader, 0, 100)) == b"lower data"
        gate.release()
    writer = await bench.fs.files.open(file, os.O_WRONLY, ME)
    bench.fs.files.write(writer, 0, b"UPPER")
    assert bytes(await bench.fs.files.read(reader, 0, 100)) == b"UPPER data"


async def test_a_failed_copy_leaves_nothing_and_can_be_tried_again(
    build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lower_file(tmp_path)
    bench = build()
    file = bench.file("d/f")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(copyup, "copy_data", full)
        with pytest.raises(OSError, match="No space left"):
            await bench.fs.copier.data(file)
    assert os.listdir(bench.work / "work") == []
    assert os.listdir(bench.upper) == []
    await bench.fs.copier.data(file)
    assert (bench.upper / "d/f").read_bytes() == b"lower data"


def _is_whiteout(path: Path) -> bool:
    return path.is_char_device() and path.stat().st_rdev == 0
