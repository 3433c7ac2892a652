"""Descriptors: as many open files as there may be, and a daemon that has few."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from tests.harness.files import outcome, write
from tests.harness.held import Client
from tests.harness.mounts import PATIENCE
from tests.harness.ready import until
from tests.harness.union import Union

MANY = 10_000
DIRECTORIES = 200
LEFT = 20


@contextmanager
def _as_many_as_there_may_be() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def _leave(union: Union, number: int) -> None:
    """Let the daemon open so many more, and no more."""
    _, hard = resource.prlimit(union.daemon.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(union.daemon.pid, resource.RLIMIT_NOFILE, (union.daemon.descriptors() + number, hard))


def test_ten_thousand_open_files(pyunion: Union) -> None:
    pyunion.watch_lowers = pyunion.compare_with_kernel = False
    for number in range(MANY):
        write(pyunion.low / f"d{number % 100}/{number}", str(number))
    pyunion.mount()
    before = pyunion.daemon.descriptors()
    opened = []
    with _as_many_as_there_may_be():
        try:
            for number in range(MANY):
                flags = os.O_RDWR if number % 10 == 0 else os.O_RDONLY
                opened.append(os.open(pyunion.at / f"d{number % 100}/{number}", flags))
            assert all(os.pread(fd, 10, 0) == b"%d" % number for number, fd in enumerate(opened))
            assert pyunion.daemon.descriptors() >= MANY
            (pyunion.at / "new").mkdir()
        finally:
            for fd in opened:
                os.close(fd)
    assert (pyunion.at / "d5/5").read_text() == "5"
    os.sync()
    assert pyunion.daemon.descriptors() < before + 300  # those of directories are kept


def test_a_daemon_with_few_descriptors_gives_up_those_that_it_keeps(pyunion: Union) -> None:
    """Each of these directories would be kept open."""
    names = [f"d{number}/below" for number in range(DIRECTORIES)]
    for name in names:
        write(pyunion.low / name / "file", name)
        (pyunion.low / name / "empty").mkdir()
    pyunion.mount()
    _leave(pyunion, LEFT)

    def use(name: str) -> list[object]:
        at = pyunion.at / name
        with (at / "file").open("a") as file:  # copy_up, and all that is above it
            file.write("!")
        os.rename(at / "empty", at / "moved")
        return [(at / "file").read_text(), sorted(os.listdir(at))]

    for name in names:
        assert use(name) == [f"{name}!", ["file", "moved"]]


class _Files:
    """Many lower files, and those of them that are open, in a union whose daemon can open LEFT more."""

    def __init__(self, union: Union, number: int) -> None:
        for each in range(number):
            write(union.low / f"file{each}", "text")
        union.mount()
        _leave(union, LEFT)
        self._union = union
        self.opened: list[int] = []

    def open_one(self, number: int) -> None:
        self.opened.append(os.open(self._union.at / f"file{number}", os.O_RDONLY))

    def close_all(self) -> None:
        """And see that one can be opened again."""
        for fd in self.opened:
            os.close(fd)
        assert Client(lambda: (self._union.at / "file0").read_text()).await_result() == "text"
        _leave(self._union, 10 * LEFT)


def test_open_says_so_and_not_the_read_after_it(pyunion: Union) -> None:
    """But for what is open for a moment and has no descriptor yet."""
    files = _Files(pyunion, 20 * LEFT)
    numbers = iter(range(20 * LEFT))
    until(
        lambda: outcome(files.open_one, next(numbers)) == "EMFILE",
        "more files can be opened than there can be",
        PATIENCE,
    )
    files.close_all()


def test_more_open_files_than_descriptors_is_told_and_passes(pyunion: Union) -> None:
    files = _Files(pyunion, 2 * LEFT)

    def open_and_read(number: int) -> None:
        files.open_one(number)
        assert os.read(files.opened[-1], 10) == b"text"

    said = [outcome(open_and_read, number) for number in range(2 * LEFT)]
    assert said[0] == "OK"
    assert said[-1] == "EMFILE"
    files.close_all()
