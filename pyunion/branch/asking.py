"""Questions to branches that may not answer. No thread that others depend on ever asks them.

A RemoteDir answers from what is known already, and else raises Unanswered with the question. Whoever runs the request
has the question answered by a thread, and then begins the request again with what is known by then
(pyunion/fs/waiting.py). So no code between has to know of it, as long as it asks before it changes anything, or undoes
what it has changed when a question fails, as it must for any system call.

A lower branch does not change, so what was answered to a request is true until its end.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from errno import EIO
from typing import Any, NamedTuple, Protocol, TypeVar

from pyunion.branch import objects
from pyunion.branch.dirs import OPEN_DIR, Dir, absent, list_entries
from pyunion.branch.remote import Remote
from pyunion.union.merge import Kind

_T = TypeVar("_T")


class Question:
    """A function to be called with a descriptor of a directory, and more arguments. Two that ask the same are equal."""

    __slots__ = ("_key", "arguments", "directory", "function")

    def __init__(self, directory: Dir, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self.directory = directory
        self.function = function
        self.arguments = arguments
        self._key = (*_way(directory), function, arguments)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Question) and self._key == other._key

    def prepare(self) -> tuple[int, list[bytes]]:
        """A descriptor for the thread, of the nearest directory above that is open, and the names from there on."""
        directory = self.directory
        names: list[bytes] = []
        while (fd := directory.open_fd) < 0:
            names.insert(0, directory.name)
            assert directory.parent is not None  # the root is open
            directory = directory.parent
        return os.dup(fd), names

    def answer(self, base: int, names: list[bytes]) -> Answer:
        """In a thread: ask, from what prepare() has said, whose descriptor is closed."""
        remote = self.directory.branch.remote
        assert remote is not None
        fd = base
        try:
            for name in names:
                below = os.open(name, OPEN_DIR, dir_fd=fd)
                os.close(fd)
                fd = below
            value = self.function(fd, *self.arguments)
            if names and _adopt(self.directory, fd):
                fd = -1
        except OSError as error:
            remote.note(error)
            return Answer(None, error)
        finally:
            if fd >= 0:
                os.close(fd)
        remote.note(None)
        return Answer(value, None)


class Answer(NamedTuple):
    """What a question has given: a value, or an error."""

    value: Any
    error: OSError | None

    def get(self) -> Any:
        """The value. Raises the error."""
        if self.error is not None:
            raise self.error
        return self.value


class Unanswered(Exception):
    """The request needs the answer to a question first."""

    def __init__(self, question: Question) -> None:
        super().__init__()
        self.question = question


class Answers(Protocol):
    """What is known: a dictionary, mostly."""

    def get(self, question: Question, /) -> Answer | None: ...


def no_answer() -> Answer:
    """What is heard of a branch that nobody waits for any more; as if it had died."""
    return Answer(None, OSError(EIO, os.strerror(EIO)))


class Without:
    """What others know, and of some branches nothing."""

    def __init__(self, remotes: Collection[Remote], others: Answers) -> None:
        self._remotes = remotes
        self._others = others

    def get(self, question: Question, /) -> Answer | None:
        return no_answer() if question.directory.branch.remote in self._remotes else self._others.get(question)


class Directly:
    """Asks at once, for a thread that may wait for ever, as nobody else needs it."""

    def __init__(self) -> None:
        self._since: float | None = None
        self.waits_for: Question | None = None

    def get(self, question: Question, /) -> Answer:
        self.waits_for = question
        self._since = time.monotonic()
        try:
            return question.answer(*question.prepare())
        finally:
            self._since = self.waits_for = None

    def waits_s(self) -> float:
        """For how long it has waited for an answer by now; for any thread."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since


# The answers that the request has which is being run; None where it cannot wait yet.
answers: ContextVar[Answers | None] = ContextVar("answers", default=None)


@contextmanager
def answered_by(known: Answers) -> Iterator[None]:
    """What is done inside knows these answers, or asks so."""
    before = answers.set(known)
    try:
        yield
    finally:
        answers.reset(before)


class RemoteDir(Dir):
    """A directory of a branch that may not answer."""

    __slots__ = ()

    def ask(self, function: Callable[..., _T], *arguments: Any) -> _T:
        question = Question(self, function, arguments)
        known = answers.get()
        answer = None if known is None else known.get(question)
        if answer is None:
            raise Unanswered(question)
        value: _T = answer.get()
        return value

    def child(self, name: bytes) -> Dir:
        return RemoteDir(self.branch, self, name)

    def stat(self, name: bytes) -> os.stat_result | None:
        try:
            return self.lstat(name)
        except OSError as error:
            if absent(error):
                return None
            raise

    def lstat(self, name: bytes) -> os.stat_result:
        return self.ask(objects.stat, name)

    def status(self) -> os.stat_result:
        return self.ask(objects.stat, b".")

    def entries(self) -> Iterator[tuple[bytes, Kind]]:
        branch = self.branch
        return iter(self.ask(_all_entries, branch.aufs, self.xwhiteouts, branch.xattr_prefix))


def _all_entries(
    fd: int, aufs: bool, xwhiteouts: bool, xattr_prefix: bytes | None
) -> list[tuple[bytes, Kind]]:
    return list(list_entries(fd, aufs, xwhiteouts, xattr_prefix))


def _way(directory: Dir) -> Iterator[Dir | bytes]:
    """What tells a directory from others: the names that lead up to one that stays open, the branch's root mostly."""
    while not directory.pinned and directory.parent is not None:
        yield directory.name
        directory = directory.parent
    yield directory


_adopting = threading.Lock()


def _adopt(directory: Dir, fd: int) -> bool:
    """Let a directory keep a descriptor that was opened for it; whether it needs one."""
    with _adopting:
        if directory.open_fd >= 0 or directory.branch.root.open_fd < 0:  # it has one, or the branch is closed by now
            return False
        directory.open_fd = fd
        directory.branch.cache.add(directory)
        return True
