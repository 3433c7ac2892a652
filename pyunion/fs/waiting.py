"""How a request waits: for a thread, or for a lock. Nothing else in this package may suspend a request.

What may not answer is asked by threads of its own: see pyunion/branch/asking.py. A request that needs an answer is
begun again when it is there, and how many wait for one branch is nothing to those who need another. A caller that dies
waits no longer: see interruption.py.

A request's coroutine can be run without a task as long as it does not wait, which most never do. Owns the point where
one that has to wait gets a task of its own: `quickly` runs a coroutine up to there, `rest_of` is what remains of it, to
be awaited in a task. Run by a task from the start, a coroutine waits as any other.
"""

from __future__ import annotations

import inspect
import os
import time
import types
from collections.abc import Callable, Collection, Coroutine, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import trio

from pyunion.branch.asking import Answer, answers, no_answer
from pyunion.branch.asking import Question as Question
from pyunion.branch.asking import Unanswered as Unanswered
from pyunion.branch.dirs import Dir
from pyunion.branch.remote import Remote, close
from pyunion.fs.interruption import Call, Left, interruptible

_T = TypeVar("_T")
_MOMENT_S = 0.002  # no longer than requests wait for each other anyway
LITTLE = 128 << 10  # bytes


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
    at the end of the mount nobody waits for that, and Left is raised when the caller dies."""
    await task_needed()
    if of is None:
        return await trio.to_thread.run_sync(function, *arguments)
    call = Call(function, arguments)
    try:
        with interruptible():
            value: _T = await _by_thread_of(of, call.make)
            return value
    except InterruptedError:
        raise Left(call) from None


async def _by_thread_of(remote: Remote, function: Callable[..., _T], *arguments: Any) -> _T:
    threads = _threads.setdefault(remote, trio.CapacityLimiter(_MOST_THREADS))
    return await trio.to_thread.run_sync(function, *arguments, limiter=threads, abandon_on_cancel=True)


_MOST_THREADS = 40  # that wait for one branch
_threads: WeakKeyDictionary[Remote, trio.CapacityLimiter] = WeakKeyDictionary()


class OnDisk:
    """Calls functions that wait for a disk: little is a moment with a quick disk, and long with a slow or busy one. A
    thread takes a moment, too; so they are called at once as long as they have little to read or to write and the last
    one that had was done in a moment. What asks a branch that may not answer is left to the threads of that."""

    def __init__(self) -> None:
        self._quick = True

    async def call(
        self, size: int, function: Callable[..., _T], *arguments: Any, of: Remote | None = None
    ) -> _T:
        """`size` bytes are to be read or written, or fewer; `of` is as of in_thread(). Raises what the function raises,
        and what in_thread() does."""
        if size > LITTLE or of is not None:
            return await in_thread(function, *arguments, of=of)
        start = time.perf_counter()
        try:
            return function(*arguments) if self._quick else await in_thread(function, *arguments)
        finally:
            self._quick = time.perf_counter() - start < _MOMENT_S


async def in_order(of: Remote, step: Callable[[], object]) -> None:
    """Have a step made that ends with close(2) of a file of a branch, as Remote.in_order() does. Who dies does not wait
    for it; it is made all the same."""
    await task_needed()
    done = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def make() -> None:
        try:
            step()
        finally:
            token.run_sync_soon(done.set)

    of.in_order(make)
    with interruptible():
        await done.wait()


# -- branches that may not answer -------------------------------------------------------------------------------------


async def open_by(directory: Dir, function: Callable[..., _T], *arguments: Any) -> _T:
    """As Dir.ask(), for what opens a file, which is not to be done again when the request is: the result is its
    descriptor, or begins with that."""
    if directory.branch.remote is None:
        return directory.ask(function, *arguments)
    value: _T = (await _answer(Question(directory, function, arguments), opens=True)).get()
    return value


def _close_opened(remote: Remote, answer: Answer | None) -> None:
    if answer is not None and answer.error is None:
        close(answer.value if isinstance(answer.value, int) else answer.value[0], remote)


async def _answer(question: Question, *, opens: bool = False) -> Answer:
    await task_needed()
    remote = question.directory.branch.remote
    assert remote is not None
    if remote in _given_up:
        return no_answer()
    base, names = question.prepare()
    call = Call(question.answer, (base, names))
    try:
        with interruptible(), _until_given_up(remote):
            answer: Answer = await _by_thread_of(remote, call.make)
            return answer
    except BaseException as end:  # the end of the mount among them, or that there is no room for a thread
        if not call.leave():
            os.close(base)
        if opens:
            call.afterwards(partial(_close_opened, remote))
        if isinstance(end, _GivenUp):
            return no_answer()
        raise


class _GivenUp(Exception):
    """Nobody waits for a branch any more."""


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


@contextmanager
def _until_given_up(remote: Remote) -> Iterator[None]:
    """One wait, in a task. Raises _GivenUp."""
    scopes = _waiting.setdefault(remote, set())
    with trio.CancelScope() as scope:
        scopes.add(scope)
        try:
            yield
        finally:
            scopes.discard(scope)
    if scope.cancelled_caught:
        raise _GivenUp


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
