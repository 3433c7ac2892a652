"""Long work on a new directory that goes on where it was interrupted, by a signal, a kill or a loss of power.

Owns the folder beside the place in which the work is done, what it says of whose work it is, and how far of it can be
relied on. The directory is at its place when it is whole, and not before. What the work is, nobody here knows: it is
numbered objects, made in the same order each time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

from pyunion.branch import syscalls
from pyunion.branch.work import remove_tree
from pyunion.errors import ExitCode, PyunionError
from pyunion.layers.staging import taken, without_acls

PREFIX = b".pyunion-half-"
NEXT = b"next"  # what is being made, until it is whole and renamed into the tree
_TREE, _STATE = b"tree", b"state"
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SECONDS = 5  # of work that a loss of power may cost, and what waits to be written then
_MNT_ID_UNIQUE = 0x4000  # statx(2)


class Half:
    """Work that was begun now or earlier."""

    def __init__(self, fd: int, state: dict[str, Any]) -> None:
        self.fd = fd  # of the folder; NEXT is to be made in it
        self.tree = os.open(_TREE, _DIR, dir_fd=fd)
        self._state = state
        self._on_disk = int(state["objects"])
        life = _life(fd)
        self._in_memory = life is not None and life == state["life"]
        self._state["life"] = life
        self._saved = time.monotonic()

    def trusts(self, number: int) -> bool:
        """Whether the object of this number is whole if it is there. The first one has the number 1."""
        return self._in_memory or number <= self._on_disk

    def made(self, number: int) -> None:
        """All objects up to this one are there; every few seconds they are put on disk."""
        if number > self._on_disk and time.monotonic() - self._saved >= _SECONDS:
            syscalls.syncfs(self.fd)
            self._state["objects"] = self._on_disk = number
            self.save()
            self._saved = time.monotonic()

    def save(self) -> None:
        new = _STATE + b".new"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        with open(fd, "w", encoding="ascii") as file:
            json.dump(self._state, file)
            file.flush()
            os.fsync(fd)
        os.rename(new, _STATE, src_dir_fd=self.fd, dst_dir_fd=self.fd)


def resume(place: bytes, work: str, fill: Callable[[Half], None]) -> None:
    """Make the directory `place`, whose tree `fill` fills; when it was interrupted, the same call goes on with it.

    `work` says all that the result depends on. Raises PyunionError, after which nothing is left, but for the half done
    work of others; and for OSError, after which what is done stays, too.
    """
    parent, name = os.path.split(place)
    folder = os.path.join(parent, PREFIX + hashlib.sha256(name).hexdigest()[:16].encode())
    with _locked(folder, place) as fd:
        half = _begun(fd, folder, place, work)
        if half is None:
            return
        try:
            fill(half)
            syscalls.syncfs(fd)
        except PyunionError:
            remove_tree(syscalls.AT_FDCWD, folder)
            raise
        except OSError as error:
            raise PyunionError(
                f"cannot read or write a branch or {os.fsdecode(place)}: {error.strerror}; what is done is in "
                f"{os.fsdecode(folder)}, and the same command goes on with it"
            ) from None
        finally:
            os.close(half.tree)
        _put(fd, place)
        remove_tree(syscalls.AT_FDCWD, folder)


@contextlib.contextmanager
def _locked(folder: bytes, place: bytes) -> Iterator[int]:
    """A descriptor of the folder, made if need be, that nobody else has."""
    if os.path.lexists(place) and not os.path.lexists(folder):
        raise taken(place)
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise PyunionError(f"cannot create {os.fsdecode(place)}: {error.strerror}") from None
    fd = os.open(folder, _DIR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink == 0:  # it was finished at this moment
            raise taken(place)
        yield fd
    except BlockingIOError:
        raise PyunionError(f"{os.fsdecode(place)} is being made at this moment", ExitCode.BUSY) from None
    finally:
        os.close(fd)


def _begun(fd: int, folder: bytes, place: bytes, work: str) -> Half | None:
    """What there is of this work, or an empty tree to begin with; None if it was all done, but for the end."""
    state = _read(fd)
    if state is not None and state.get("work") != work:
        raise PyunionError(
            f"{os.fsdecode(folder)} is half done work for {os.fsdecode(place)}, but with other layers or by another "
            "version; go on with these, or remove it",
            ExitCode.USAGE,
        )
    if state is not None and _is_there(fd, _TREE):
        with contextlib.suppress(FileNotFoundError):
            remove_tree(fd, NEXT)
        return Half(fd, state)
    if os.path.lexists(place):
        remove_tree(syscalls.AT_FDCWD, folder)
        if state is not None and os.lstat(place).st_ino == state["tree"]:
            return None
        raise taken(place)
    for name in os.listdir(fd):
        remove_tree(fd, os.fsencode(name))
    without_acls(fd)
    os.mkdir(_TREE, 0o755, dir_fd=fd)
    number = os.stat(_TREE, dir_fd=fd).st_ino
    half = Half(fd, {"work": work, "tree": number, "objects": 0, "life": _life(fd)})
    half.save()
    return half


def _put(fd: int, place: bytes) -> None:
    """The tree comes to its place, and is there after a loss of power."""
    try:
        syscalls.renameat2(fd, _TREE, syscalls.AT_FDCWD, place, syscalls.RENAME_NOREPLACE)
    except FileExistsError:
        raise taken(place) from None
    parent = os.open(os.path.dirname(place), _DIR)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def _read(fd: int) -> dict[str, Any] | None:
    """None: nothing was begun. What cannot be read is nobody's work that we know."""
    try:
        with open(os.open(_STATE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd), "rb") as file:
            return dict(json.load(file))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        return {}


def _is_there(fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _life(fd: int) -> str | None:
    """The same as long as nothing that was written to this file system can have been lost; None if that cannot be told.

    A mount has a number that no other one gets before the next boot, since Linux 6.8."""
    answer = syscalls.statx(fd, b"", _MNT_ID_UNIQUE)
    (mask,) = struct.unpack_from("=I", answer, 0)
    if not mask & _MNT_ID_UNIQUE:
        return None
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return f"{file.read().strip()} {struct.unpack_from('=Q', answer, 144)[0]}"
