"""Other lower branches for a running mount, and those that were changed from outside: what the control socket asks for.

Owns the order of things. What may be refused is asked first, by threads, as branches may be slow. The change itself is
one synchronous step between two requests, while no copy_up is under way; the kernel is told after it, by a thread.
What the step needs of branches that may not answer is asked before (FileSystem.rehearsal), and the change is refused
where one of them is silent; but if that one is to go, it goes as one that has died.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import trio

from pyunion import preflight
from pyunion.branch import opening
from pyunion.branch.asking import Answer, Answers, Directly, Question, Without, answered_by
from pyunion.branch.dirs import Branch
from pyunion.branch.handles import Origins
from pyunion.branch.remote import Remote
from pyunion.config import MountConfig
from pyunion.errors import ExitCode, PyunionError
from pyunion.fs import needs
from pyunion.fs.filesystem import FileSystem
from pyunion.fs.restack import Stale
from pyunion.fs.waiting import answer_all, given_up
from pyunion.fuse import stale as kernel

log = logging.getLogger(__name__)

_BRANCH_S = 10.0  # for a branch to answer
_LOOK_S = 0.5  # how often is looked whether one does
_MOST_THREADS = 40  # that wait for branches, perhaps for ever
_COPIES_S = 60.0  # for the copies that are being made
_TRIES = 5

_T = TypeVar("_T")


class _New(NamedTuple):
    """A stack that is ready to be used."""

    lowers: list[Branch]
    opened: list[Branch]
    origins: Origins | None

    def close(self) -> None:
        for branch in self.opened:
            branch.close()
        if self.origins is not None:
            self.origins.close()


class _Silent(PyunionError):
    """A branch has left a question unanswered."""

    def __init__(self, question: Question | None) -> None:
        which = None if question is None else question.directory.branch
        shown = "a branch" if which is None else os.fsdecode(which.path)
        super().__init__(f"{shown} has not answered for {_BRANCH_S:.0f} s", ExitCode.BRANCH)
        self.remote = None if which is None else which.remote


class Live:
    """The lower branches of one mount. `publish` is told of each new configuration; `stack` closes what is open at the
    end."""

    def __init__(
        self, config: MountConfig, fs: FileSystem, stack: ExitStack, publish: Callable[[MountConfig], None]
    ) -> None:
        self._config = config
        self._fs = fs
        self._stack = stack
        self._publish = publish
        self._one_at_a_time = trio.Lock()
        self._threads = trio.CapacityLimiter(_MOST_THREADS)

    async def change(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Do what a request of the control socket says; the paths of the lower branches that there are now. Raises
        PyunionError where it is refused, and then nothing has changed."""
        async with self._one_at_a_time:
            if asked["do"] == "refresh":
                await kernel.tell(await self._refresh())
            else:
                await self._restack(await self._wanted(asked))
            return {"branches": [os.fsdecode(branch.path) for branch in self._fs.lowers]}

    # -- which branches ---------------------------------------------------------------------------------------

    async def _wanted(self, asked: dict[str, Any]) -> list[bytes]:
        """The paths of the lower branches that are to be."""
        paths = [branch.path for branch in self._fs.lowers]
        match asked:
            case {"add": str(path), "position": int(place)}:
                if not 1 <= place <= len(paths) + 1:
                    raise PyunionError(
                        f"there is no position {place}: the lower branches of {self._point} are 1 to {len(paths)}, and "
                        f"{len(paths) + 1} is below them",
                        ExitCode.USAGE,
                    )
                paths.insert(place - 1, await self._in_thread(self._check, os.fsencode(path)))
            case {"add": str(path), "position": None}:
                paths.append(await self._in_thread(self._check, os.fsencode(path)))
            case {"remove": str(path)}:
                paths.remove(await self._in_thread(self._known, os.fsencode(path)))
            case {"set": [*wanted]} if all(isinstance(path, str) for path in wanted):
                return await self._in_thread(self._check_all, [os.fsencode(path) for path in wanted])
            case _:
                raise PyunionError('"branches" takes "add" with a "position", "remove" or "set"', ExitCode.USAGE)
        return paths

    @property
    def _point(self) -> str:
        return os.fsdecode(self._config.mountpoint)

    def _check(self, path: bytes) -> bytes:
        """In a thread: a branch that is to be one."""
        layers = (*self._fs.table.root.layers, *self._fs.lookup.data_layers)
        return preflight.check_lower(path, self._config, {layer.branch.path: layer.fd() for layer in layers})

    def _check_all(self, paths: list[bytes]) -> list[bytes]:
        known = {branch.path for branch in self._fs.lowers}
        checked = [path if path in known else self._check(path) for path in paths]
        if len(set(checked)) < len(checked):
            raise PyunionError("a lower branch is named twice; name each branch once", ExitCode.BRANCH)
        return checked

    def _known(self, path: bytes) -> bytes:
        """In a thread: a lower branch that is one, by its path or by any other one."""
        branches = self._fs.lowers
        if path in (branch.path for branch in branches):
            return path
        shown = os.fsdecode(path)
        for branch in self._fs.data_branches:
            if branch.path == path:
                raise PyunionError(f"{shown} is a data-only branch, which stays until {self._point} is unmounted")
        if path == self._config.upper:
            raise PyunionError(f"{shown} is the upper branch of {self._point}, and stays until that is unmounted")
        try:
            st = os.stat(path)
        except OSError:
            st = None
        for branch in branches:
            if st is not None and os.path.samestat(st, os.fstat(branch.root.fd())):
                return branch.path
        raise PyunionError(
            f"{shown} is no lower branch of {self._point}; `pyunion status {self._point}` lists them", ExitCode.BRANCH
        )

    # -- the change -------------------------------------------------------------------------------------------

    async def _restack(self, paths: list[bytes]) -> None:
        if not paths:
            raise PyunionError(
                f"it is the last lower branch of {self._point}, and a union has one at least", ExitCode.BRANCH
            )
        if paths == [branch.path for branch in self._fs.lowers]:
            return
        new = await self._in_thread(self._open, paths)
        with ExitStack() as waits:
            try:
                stale = await self._switch_though_silent(new, waits)
            except BaseException:
                new.close()
                raise
            self._settle(new, paths)
            await kernel.tell(stale)

    def _settle(self, new: _New, paths: list[bytes]) -> None:
        for branch in new.opened:
            self._stack.callback(branch.root.close)
        data = [branch.path for branch in self._fs.data_branches]
        self._config = replace(self._config, lowers=(*paths, *data))
        self._publish(self._config)
        log.info("the lower branches are %s", ", ".join(os.fsdecode(path) for path in paths))

    def _open(self, paths: list[bytes]) -> _New:
        """In a thread."""
        known = {branch.path: branch for branch in self._fs.lowers}
        missing = [path for path in paths if path not in known]
        with ExitStack() as stack:
            opened = opening.open_lowers(
                missing,
                self._fs.cache,
                stack,
                first_index=0,
                xattr_prefix=self._fs.settings.xattr_prefix,
                aufs=self._config.aufs,
                patient=True,
            )
            known |= {branch.path: branch for branch in opened}
            lowers = [known[path] for path in paths]
            for branch in opened:
                branch.is_last = branch is lowers[-1]
            origins = self._origins(lowers, opened, stack)
            stack.pop_all()
        return _New(lowers, opened, origins)

    def _origins(self, lowers: list[Branch], opened: list[Branch], stack: ExitStack) -> Origins | None:
        if self._fs.lookup.origins is None:
            return None
        # Those that were there first go on to count, where file systems cannot be told apart.
        origins = Origins([*(branch for branch in lowers if branch not in opened), *opened], stack)
        if self._fs.lookup.index is not None and not origins.usable:
            names = ", ".join(os.fsdecode(branch.path) for branch in opened)
            raise PyunionError(
                f"{names}: there are no lasting file handles, by which the index of hard links finds what it has; "
                f"unmount {self._point} and mount it with all branches",
                ExitCode.BRANCH,
            )
        return origins

    async def _switch_though_silent(self, new: _New, waits: ExitStack) -> Stale:
        """A branch that goes is waited for once. If it is silent, nobody waits for it any more, until the kernel, whose
        locks those may hold who do, has heard of the change."""
        try:
            return await self._switch(new)
        except _Silent as silent:
            leaving = {branch.remote for branch in self._fs.lowers if branch not in new.lowers}
            if silent.remote is None or silent.remote not in leaving:
                raise
            log.warning("%s, and goes as it is", silent)
            return await self._switch(new, [silent.remote], waits)

    async def _switch(self, new: _New, without: Collection[Remote] = (), waits: ExitStack | None = None) -> Stale:
        """Once nothing in upper needs what goes, and that was so when the last copy had ended. Of the branches
        `without` nothing is asked, and `waits` takes note that nobody waits for them any more."""
        known: dict[Question, Answer] = {}
        answers = Without(without, known)
        for _ in range(_TRIES):
            seen = self._changes()
            await self._in_thread(self._require_data, new, walks=True, without=without)
            await self._ask_ahead(new.lowers, known, answers)
            if waits is not None:
                waits.enter_context(given_up(without))
                waits = None
            async with self._no_copies():
                await self._in_thread(self._require_names, new, walks=True)
                if self._changes() == seen and self._is_known(new.lowers, answers):
                    origins = self._fs.lookup.origins if new.origins is None else new.origins
                    if new.origins is not None:
                        self._stack.callback(new.origins.close)
                    with answered_by(answers):
                        return self._fs.restack(new.lowers, origins)
        raise self._restless()

    def _changes(self) -> tuple[int, int]:
        """What a walk through upper may have missed."""
        return self._fs.table.moves, self._fs.copier.progress.done["metadata"]

    def _require_data(self, new: _New) -> None:
        """In a thread."""
        upper = self._fs.copier.upper
        if upper is None or upper.xattr_prefix is None:
            return
        follow, data = self._fs.lookup.follow, self._fs.data_branches
        before = needs.Stack(upper, self._fs.lowers, data, follow=follow)
        after = needs.Stack(upper, new.lowers, data, follow=follow)
        try:
            path = needs.lost_data(before, after)
        finally:
            before.close()
            after.close()
        if path is not None:
            raise PyunionError(
                f"{self._point}{os.fsdecode(path)} was copied up without its data, and would have other ones or none; "
                "write to it (`touch` is not enough) or remove it, and try it again",
                ExitCode.BUSY,
            )

    def _require_names(self, new: _New) -> None:
        """In a thread."""
        index, origins = self._fs.lookup.index, self._fs.lookup.origins
        gone = [branch for branch in self._fs.lowers if branch not in new.lowers]
        if not gone or index is None or origins is None or new.origins is None:
            return
        name = needs.lost_names(index, origins, new.origins, gone)
        if name is not None:
            raise PyunionError(
                f"{os.fsdecode(name)} has hard links, and was changed by another name: what was written would be found "
                "by no name any more; write to it by this name too, or remove it, and try it again",
                ExitCode.BUSY,
            )

    async def _refresh(self) -> Stale:
        lowers = self._fs.lowers
        known: dict[Question, Answer] = {}
        for _ in range(_TRIES):
            for branch in (*lowers, *self._fs.data_branches):
                branch.cache.close_those_of(branch)
                await self._in_thread(opening.read_root_mark, branch)
            await self._ask_ahead(lowers, known, known, changed_outside=True)
            async with self._no_copies():
                for branch in (*lowers, *self._fs.data_branches):
                    branch.cache.close_those_of(branch)
                if self._is_known(lowers, known, changed_outside=True):
                    with answered_by(known):
                        stale = self._fs.restack(lowers, self._fs.lookup.origins, changed_outside=True)
                    log.info("the lower branches are looked at anew")
                    return stale
        raise self._restless()

    def _restless(self) -> PyunionError:
        return PyunionError(f"directories of {self._point} are moved all the time; try it again", ExitCode.BUSY)

    # -- branches that may not answer -------------------------------------------------------------------------

    async def _ask_ahead(
        self, lowers: list[Branch], known: dict[Question, Answer], answers: Answers, *, changed_outside: bool = False
    ) -> None:
        """Until the step, if it were made now, would have to ask nothing more of them. `answers` are what it will hear;
        what it needs comes to `known`."""
        while True:
            questions: dict[Question, None] = {}
            with answered_by(answers):
                for some in self._rehearsal(lowers, changed_outside):
                    questions |= dict.fromkeys(some)
                    self._fs.cache.trim()
                    await trio.lowlevel.checkpoint()
            if not questions:
                return
            try:
                await answer_all(list(questions), known, _BRANCH_S)
            except trio.TooSlowError:
                raise _Silent(next((each for each in questions if each not in known), None)) from None

    def _is_known(self, lowers: list[Branch], answers: Answers, *, changed_outside: bool = False) -> bool:
        """Whether nothing has come since then that it would have to ask."""
        with answered_by(answers):
            return not any(self._rehearsal(lowers, changed_outside))

    def _rehearsal(self, lowers: list[Branch], changed_outside: bool) -> Iterable[list[Question]]:
        if all(branch.remote is None for branch in (*self._fs.lowers, *self._fs.data_branches, *lowers)):
            return ()
        return self._fs.rehearsal(lowers, changed_outside=changed_outside)

    @asynccontextmanager
    async def _no_copies(self) -> AsyncIterator[None]:
        locks = self._fs.copier.locks
        if len(locks):
            log.info("waiting for files that are being copied to upper")
        with trio.move_on_after(_COPIES_S) as scope:
            async with locks.none():
                scope.deadline = float("inf")
                yield
        if scope.cancelled_caught:
            raise PyunionError(
                f"files are being copied to upper; try it again when `pyunion status {self._point}` shows none",
                ExitCode.BUSY,
            )

    async def _in_thread(
        self, function: Callable[..., _T], *arguments: Any, walks: bool = False, without: Collection[Remote] = ()
    ) -> _T:
        """What `walks` may take long, as long as it has each answer in time; else the whole of it has to be in time."""
        directly = Directly()
        failures: list[Exception] = []
        with answered_by(Without(without, directly)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch, directly if walks else None, nursery.cancel_scope)
                try:
                    return await trio.to_thread.run_sync(
                        function, *arguments, abandon_on_cancel=True, limiter=self._threads
                    )
                except Exception as error:  # which the nursery would make a group of
                    failures.append(error)
                finally:
                    nursery.cancel_scope.cancel()
        if failures:
            raise failures[0]
        raise _Silent(directly.waits_for)


async def _watch(directly: Directly | None, scope: trio.CancelScope) -> None:
    """End what is in the scope when a branch is silent."""
    if directly is None:
        await trio.sleep(_BRANCH_S)
    while directly is not None and directly.waits_s() < _BRANCH_S:
        await trio.sleep(_LOOK_S)
    scope.cancel()
