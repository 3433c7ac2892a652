"""How a request waits: for a thread, or for a lock. Nothing else in this package may suspend a request.

What may not answer is asked by threads of its own: see pyunion/branch/asking.py. A request that needs an answer is
begun again when it is there, and how many wait for one branch is nothing to those who need another.

A request's coroutine can be run without a task as long as it does not wait, which most never do. Owns the point where
one that has to wait gets a task of its own: `quickly` runs a coroutine up to there, `rest_of` is what remains of it, to
be awaited in a task. Run by a task from the start, a coroutine waits as any other.
"""

from __future__ import annotations

import inspect
import os
import threading
import time
import types
from collections.abc import Callable, Collection, Coroutine, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import trio

from pyunion.branch.asking import Answer, answers, no_answer
from pyunion.branch.asking import Question as Question
from pyunion.branch.asking import Unanswered as Unanswered
from pyunion.branch.dirs import Dir
from pyunion.branch.remote import Remote, close

_T = TypeVar("_T")
_MOMENT_S = 0.002  # no longer than requests wait for each other anyway
_LITTLE = 128 << 10  # bytes


class _Driver:
    """Whether a coroutine is being run without a task just now. Everything that it does meanwhile is synchronous."""

    at_work = False


class Done(NamedTuple):
    """The result of a coroutine that did not have to wait."""

    result: Any


def quickly(coroutine: Coroutine[Any, Any, Any]) -> Done | None:
    """Run a coroutine; None if it has to wait. Raises what it raises."""
    _Driver.at_work = True
    try:
        coroutine.send(None)
    except StopIteration as end:
        return Done(end.value)
    finally:
        _Driver.at_work = False
    return None


@types.coroutine
def rest_of(coroutine: Coroutine[Any, Any, _T]) -> Generator[Any, Any, _T]:
    """What quickly() has left of a coroutine."""
    return (yield from coroutine.__await__())


@types.coroutine
def task_needed() -> Generator[None, None, None]:
    """To be awaited before anything that suspends the request."""
    if _Driver.at_work:
        yield


async def in_thread(function: Callable[..., _T], *arguments: Any, of: Remote | None = None) -> _T:
    """Call a function that may take long, while other requests go on. `of` says which branch it may wait for for ever:
    at the end of the mount nobody waits for that."""
    await task_needed()
    if of is None:
        return await trio.to_thread.run_sync(function, *arguments)
    threads = _threads.setdefault(of, trio.CapacityLimiter(_MOST_THREADS))
    return await trio.to_thread.run_sync(function, *arguments, limiter=threads, abandon_on_cancel=True)


_MOST_THREADS = 40  # that wait for one branch
_threads: WeakKeyDictionary[Remote, trio.CapacityLimiter] = WeakKeyDictionary()


class OnDisk:
    """Calls functions that wait for a disk: little is a moment with a quick disk, and long with a slow or busy one. A
    thread takes a moment, too; so they are called at once as long as they have little to read or to write and the last
    one that had was done in a moment. Never for what asks a branch that may not answer."""

    def __init__(self) -> None:
        self._quick = True

    async def call(self, size: int, function: Callable[..., _T], *arguments: Any) -> _T:
        """`size` bytes are to be read or written, or fewer. Raises what the function raises."""
        if size > _LITTLE:
            return await in_thread(function, *arguments)
        start = time.perf_counter()
        try:
            return function(*arguments) if self._quick else await in_thread(function, *arguments)
        finally:
            self._quick = time.perf_counter() - start < _MOMENT_S


async def in_order(of: Remote, step: Callable[[], object]) -> None:
    """Have a step made that ends with close(2) of a file of a branch, as Remote.in_order() does."""
    await task_needed()
    done = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def make() -> None:
        try:
            step()
        finally:
            token.run_sync_soon(done.set)

    of.in_order(make)
    await done.wait()


# -- branches that may not answer -------------------------------------------------------------------------------------


async def ask(directory: Dir, function: Callable[..., _T], *arguments: Any) -> _T:
    """As Dir.ask(), for what opens a file, and so is not to be asked again when the request is: the result is its
    descriptor, or begins with that."""
    if directory.branch.remote is None:
        return directory.ask(function, *arguments)
    value: _T = (await _answer(Question(directory, function, arguments), opens=True)).get()
    return value


_given_up: set[Remote] = set()
_waiting: WeakKeyDictionary[Remote, set[trio.CancelScope]] = WeakKeyDictionary()


@contextmanager
def given_up(remotes: Collection[Remote]) -> Iterator[None]:
    """Nobody waits for what these branches are asked: who does, or comes to it, hears that they fail. Data that are
    being read or copied are waited for all the same."""
    _given_up.update(remotes)
    for remote in remotes:
        for scope in _waiting.get(remote, ()):
            scope.cancel()
    try:
        yield
    finally:
        _given_up.difference_update(remotes)


async def _answer(question: Question, *, opens: bool = False) -> Answer:
    await task_needed()
    remote = question.directory.branch.remote
    assert remote is not None
    if remote in _given_up:
        return no_answer()
    asking = _Asking(question, remote, opens)
    answer = no_answer()
    with trio.CancelScope() as scope:
        scopes = _waiting.setdefault(remote, set())
        scopes.add(scope)
        try:
            answer = asking.taken(await in_thread(asking.answer, of=remote))
        finally:
            scopes.discard(scope)
            asking.leave()
    return answer


class _Asking:
    """A question that a thread asks, whose answer may come when nobody waits for it any more: then it is given back."""

    def __init__(self, question: Question, remote: Remote, opens: bool) -> None:
        self._question = question
        self._remote = remote
        self._opens = opens
        self._base, self._names = question.prepare()
        self._changing = threading.Lock()
        self._begun = self._left = False
        self._not_taken: Answer | None = None

    def answer(self) -> Answer:
        """In a thread."""
        with self._changing:
            begun = self._begun = not self._left
        if not begun:
            return no_answer()
        answer = self._question.answer(self._base, self._names)
        with self._changing:
            self._not_taken = answer
            if self._left:
                self._give_back()
        return answer

    def taken(self, answer: Answer) -> Answer:
        self._not_taken = None
        return answer

    def leave(self) -> None:
        with self._changing:
            self._left = True
            if not self._begun:
                os.close(self._base)
            self._give_back()

    def _give_back(self) -> None:
        answer, self._not_taken = self._not_taken, None
        if answer is not None and answer.error is None and self._opens:
            close(answer.value if isinstance(answer.value, int) else answer.value[0], self._remote)


async def patiently(
    again: Callable[[], Any], question: Question | None = None, begun: Coroutine[Any, Any, Any] | None = None
) -> Any:
    """The result of a request that has to wait. It needs the answer to `question` first, or `begun` is what quickly()
    has left of it; `again` begins it from the start, synchronous or not."""
    known: dict[Question, Answer] = {}
    before = answers.set(known)
    try:
        while True:
            if question is not None:
                known[question] = await _answer(question)
            try:
                if begun is not None:
                    return await rest_of(begun)
                result = again()
                return await result if inspect.iscoroutine(result) else result
            except Unanswered as unanswered:
                question, begun = unanswered.question, None
    finally:
        answers.reset(before)


async def answer_all(questions: Sequence[Question], known: dict[Question, Answer], patience_s: float) -> None:
    """Have questions answered, many at a time. Raises trio.TooSlowError if there is no answer for so long; those that
    have none yet are not in `known` then."""

    async def learn(question: Question) -> None:
        try:
            known[question] = await _answer(question)
        except OSError as error:
            known[question] = Answer(None, error)
        patience.deadline = trio.current_time() + patience_s

    with trio.fail_after(patience_s) as patience:
        for start in range(0, len(questions), _MOST_THREADS):
            async with trio.open_nursery() as nursery:
                for question in questions[start : start + _MOST_THREADS]:
                    nursery.start_soon(learn, question)
