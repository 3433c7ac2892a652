"""Several requests at once, begun and let go on in different orders: what they say, and what is there, is what one
after the other would have given.

A request gives way to others only where it waits for a thread (pyunion/fs/waiting.py). There each is held until the
test lets it go, so that an interleaving is made on purpose.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from pyunion.fs import copier, files, waiting
from pyunion.fs.attributes import Changes
from tests.fs.conftest import ME, Bench, Build

Request = Callable[[Bench], Awaitable[object]]


class Turns:
    """Stands for the threads: what is to be run there waits for its turn."""

    def __init__(self) -> None:
        self.held: list[trio.Event] = []
        self.runs = 0

    async def in_thread(self, function: Callable[..., Any], *arguments: Any, of: None = None) -> Any:
        turn = trio.Event()
        self.held.append(turn)
        await turn.wait()
        self.runs += 1
        return function(*arguments)

    async def give(self, which: int) -> None:
        """Let one of those who wait go on, and everybody as far as that takes them."""
        self.held.pop(which % len(self.held)).set()
        await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Iterator[Turns]:
    turns = Turns()
    for module in (copier, files, waiting):
        monkeypatch.setattr(module, "in_thread", turns.in_thread)
    monkeypatch.setattr(waiting, "LITTLE", -1)  # nothing is so small that a request does not wait for it
    yield turns
    assert turns.held == []


async def at_once(bench: Bench, turns: Turns, requests: Sequence[Request], choice: int) -> list[str]:
    """Begin all in this order, then give turns by the choice; what each said."""
    said = ["?"] * len(requests)

    async def run(number: int, request: Request) -> None:
        try:
            await request(bench)
            said[number] = "OK"
        except OSError as error:
            said[number] = errno.errorcode[error.errno or 0]

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for number, request in enumerate(requests):
                nursery.start_soon(run, number, request)
                await trio.testing.wait_all_tasks_blocked()
            while turns.held:
                await turns.give(choice)
                choice //= 2
    return said


async def _write(bench: Bench) -> None:
    fd = await bench.fs.files.open(bench.file("d/f"), os.O_WRONLY, ME)
    bench.fs.files.write(fd, 0, b"WRITE")
    bench.fs.files.release(fd)


async def _truncate(bench: Bench) -> None:
    bench.fs.files.release(await bench.fs.files.open(bench.file("d/f"), os.O_WRONLY | os.O_TRUNC, ME))


async def _unlink(bench: Bench) -> None:
    await bench.fs.remove.file(bench.directory("d"), b"f")


async def _rename(bench: Bench) -> None:
    await bench.fs.rename.rename(bench.directory("d"), b"f", bench.directory(""), b"g", 0)


async def _rename_directory(bench: Bench) -> None:
    root = bench.directory("")
    await bench.fs.rename.rename(root, b"d", root, b"e", 0)


async def _link(bench: Bench) -> None:
    await bench.fs.create.link(bench.file("d/f"), bench.directory(""), b"l")


async def _look(bench: Bench) -> None:
    bench.file("d/f")


async def _rmdir(bench: Bench) -> None:
    bench.fs.remove.directory(bench.directory(""), b"d")


async def _create(bench: Bench) -> None:
    _, _, fd = bench.fs.create.file(bench.directory("d"), b"n", 0o644, ME)
    os.close(fd)


REQUESTS = {
    request.__name__.strip("_"): request
    for request in (_write, _truncate, _unlink, _rename, _rename_directory, _link, _look, _rmdir, _create)
}


def tree_of(bench: Bench) -> dict[str, bytes | None]:
    """The union as it is now: directories and the data of files."""
    found: dict[str, bytes | None] = {}

    def walk(path: str) -> None:
        directory = bench.directory(path)
        for name in map(os.fsdecode, bench.fs.lookup.listing(directory)):
            below = f"{path}/{name}".lstrip("/")
            node = bench.node(below)
            if node.is_dir:
                found[below] = None
                walk(below)
            else:
                fd, real = node.address()
                with open(os.open(real, os.O_RDONLY, dir_fd=fd), "rb") as file:
                    found[below] = file.read()

    walk("")
    return found


def fill(base: Path) -> None:
    (base / "lower/d").mkdir()
    (base / "lower/d/f").write_bytes(b"lower data")


class Model:
    """What the requests do one after the other, on plain values: the data of files by path, None for directories."""

    def __init__(self) -> None:
        self.tree: dict[str, bytes | None] = {"d": None, "d/f": b"lower data"}

    def run(self, name: str) -> str:
        tree = self.tree
        needs = "d" if name in ("rename_directory", "rmdir", "create") else "d/f"
        if needs not in tree:
            return "ENOENT"
        if name == "write":
            data = tree["d/f"]
            assert data is not None
            tree["d/f"] = b"WRITE" + data[5:]
        elif name == "truncate":
            tree["d/f"] = b""
        elif name == "unlink":
            del tree["d/f"]
        elif name == "rename":
            tree["g"] = tree.pop("d/f")
        elif name == "rename_directory":
            for path in list(tree):
                if path.startswith("d"):
                    tree["e" + path[1:]] = tree.pop(path)
        elif name == "link":
            if "l" in tree:
                return "EEXIST"
            tree["l"] = tree["d/f"]
        elif name == "rmdir":
            if any(path.startswith("d/") for path in tree):
                return "ENOTEMPTY"
            del tree["d"]
        elif name == "create":
            if "d/n" in tree:
                return "EEXIST"
            tree["d/n"] = b""
        return "OK"


def one_by_one(names: Sequence[str], order: Sequence[int]) -> tuple[list[str], dict[str, bytes | None]]:
    model = Model()
    said = ["?"] * len(names)
    for number in order:
        said[number] = model.run(names[number])
    if "l" in model.tree:
        _share(model.tree, [names[number] for number in order])
    return said, model.tree


def _share(tree: dict[str, bytes | None], names: Sequence[str]) -> None:
    """What is written after a link was made shows by it too."""
    other = next((tree[path] for path in ("d/f", "e/f", "g") if path in tree), None)
    if other is not None:
        tree["l"] = other


PAIRS = list(itertools.product(REQUESTS, repeat=2))


async def test_32_writers_of_one_lower_file_get_one_copy(build: Build, turns: Turns, tmp_path: Path) -> None:
    fill(tmp_path)
    bench = build()
    assert await at_once(bench, turns, [_write] * 32, 0) == ["OK"] * 32
    assert turns.runs == 1
    assert tree_of(bench) == {"d": None, "d/f": b"WRITE data"}
    assert len(bench.fs.copier.locks) == 0


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
async def test_two_requests_at_once_are_as_one_after_the_other(
    build: Build, turns: Turns, tmp_path: Path, pair: tuple[str, str]
) -> None:
    fill(tmp_path)
    bench = build()
    said = await at_once(bench, turns, [REQUESTS[name] for name in pair], 1)
    assert (said, tree_of(bench)) in [one_by_one(pair, order) for order in ((0, 1), (1, 0))]
    assert len(bench.fs.copier.locks) == 0
    assert nothing_left(bench)


@pytest.mark.parametrize("triple", list(itertools.permutations(("write", "rename", "unlink", "link"), 3)), ids="-".join)
@pytest.mark.parametrize("choice", range(4))
async def test_three_requests_at_once_are_as_one_after_the_other(
    build: Build, turns: Turns, tmp_path: Path, triple: tuple[str, str, str], choice: int
) -> None:
    fill(tmp_path)
    bench = build()
    said = await at_once(bench, turns, [REQUESTS[name] for name in triple], choice)
    assert (said, tree_of(bench)) in [one_by_one(triple, order) for order in itertools.permutations(range(3))]
    assert nothing_left(bench)


async def test_times_that_are_set_while_a_metadata_only_copy_gets_its_data_stay(
    build: Build, turns: Turns, tmp_path: Path
) -> None:
    fill(tmp_path)
    bench = build(metacopy=True)
    file = bench.file("d/f")

    async def touch(bench: Bench, mtime_ns: int = 7) -> None:
        await bench.fs.attributes.change(file, Changes(atime_ns=5, mtime_ns=mtime_ns), None, ME)

    async def complete(bench: Bench) -> None:
        await bench.fs.copier.data(file)

    await touch(bench, 1)
    assert os.getxattr(bench.upper / "d/f", "trusted.overlay.metacopy") == b""
    assert await at_once(bench, turns, [complete, touch], 0) == ["OK", "OK"]
    assert file.data is None
    assert (file.stat().st_atime_ns, file.stat().st_mtime_ns) == (5, 7)
    assert (bench.upper / "d/f").read_bytes() == b"lower data"


def nothing_left(bench: Bench) -> bool:
    """Whether the work directory holds nothing but whiteouts to make links of."""
    return all(path.is_char_device() for path in (bench.work / "work").iterdir())
