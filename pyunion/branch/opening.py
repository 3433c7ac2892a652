"""Opening the branches of a mount, with locks on upper and work.

Owns how a path becomes a Branch. Paths were checked by the preflight; what can still fail here fails with a sentence.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from errno import EDQUOT, ENOSPC
from stat import S_IFREG

from pyunion.branch import objects
from pyunion.branch.asking import Directly, RemoteDir, answered_by
from pyunion.branch.dirs import Branch, Dir, DirCache
from pyunion.branch.readonly import open_readonly
from pyunion.branch.remote import Remote, is_remote
from pyunion.branch.work import remove_tree
from pyunion.errors import ExitCode, PyunionError
from pyunion.union import marks

log = logging.getLogger(__name__)

# umount(8) returns a moment before the daemon of that mount has ended and given its locks back.
_LOCK_WAIT_S = 1.0
_LOCK_RETRY_S = 0.01

# What keeps others from mounting an upper branch is an entry of this directory, as overlayfs has it.
_INCOMPATIBLE = b"work/incompat"
_VOLATILE = b"volatile"

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PATH_DIR = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def open_directory(path: bytes, flags: int = _PATH_DIR) -> int:
    """A descriptor of a branch's root; symlinks in the path that the user gave are followed once, here."""
    try:
        return os.open(path, flags)
    except OSError as error:
        raise PyunionError(
            f"cannot open the branch {os.fsdecode(path)}: {error.strerror}", ExitCode.BRANCH
        ) from None


def open_upper(
    path: bytes, cache: DirCache, stack: ExitStack, xattr_prefix: bytes | None, *, read_only: bool = False
) -> Branch:
    """The upper branch; its descriptor is closed by `stack`. In a read-only mount nothing can be changed by it."""
    if read_only:
        (fd,) = open_readonly([path], stack)
    else:
        fd = open_directory(path)
        stack.callback(os.close, fd)
    return upper_branch(path, fd, cache, xattr_prefix)


def upper_branch(path: bytes, fd: int, cache: DirCache, xattr_prefix: bytes | None) -> Branch:
    """The upper branch by a descriptor of its root."""
    branch = Branch(0, path, fd, cache, is_upper=True, xattr_prefix=xattr_prefix)
    read_root_mark(branch)
    return branch


def read_root_mark(branch: Branch) -> None:
    """A root is no entry of any directory, so its mark is read here: whether it has whiteouts in xattr form."""
    if branch.xattr_prefix is not None:
        value = branch.root.ask(objects.get_mark, b".", branch.xattr_prefix + marks.OPAQUE)
        branch.root.xwhiteouts = value == marks.OPAQUE_XWHITEOUTS


def open_lowers(
    paths: Sequence[bytes],
    cache: DirCache,
    stack: ExitStack,
    *,
    first_index: int,
    xattr_prefix: bytes,
    aufs: bool,
    data_only: int = 0,
    patient: bool = False,
) -> list[Branch]:
    """The lower branches, topmost first, the last `data_only` of them for data only; `stack` closes those that are open
    by then. A `patient` caller can wait for those that may not answer (pyunion/branch/asking.py)."""
    with ExitStack() as opened, answered_by(Directly()):
        roots = open_readonly(paths, opened)
        branches = lower_branches(
            [
                (path, fd, Remote(path) if patient and is_remote(fd) else None)
                for path, fd in zip(paths, roots, strict=True)
            ],
            cache,
            first_index=first_index,
            xattr_prefix=xattr_prefix,
            aufs=aufs,
            data_only=data_only,
        )
        for branch in branches:
            read_root_mark(branch)
        opened.pop_all()
    for branch in branches:
        stack.callback(branch.root.close)
    return branches


def lower_branches(
    opened: Sequence[tuple[bytes, int, Remote | None]],
    cache: DirCache,
    *,
    first_index: int,
    xattr_prefix: bytes,
    aufs: bool,
    data_only: int,
) -> list[Branch]:
    """The lower branches by their paths, descriptors of their roots, and what is known of those that may not answer.
    The marks of their roots are still to be read."""
    last = len(opened) - data_only - 1
    branches = []
    for number, (path, fd, remote) in enumerate(opened):
        branch = Branch(
            first_index + number,
            path,
            fd,
            cache,
            is_last=number >= last,
            data_below=number == last and data_only > 0,
            xattr_prefix=xattr_prefix,
            user_marks=xattr_prefix != marks.USER,
            aufs=aufs,
            remote=remote,
            directory=Dir if remote is None else RemoteDir,
        )
        branches.append(branch)
    return branches


def lock_directory(path: bytes, stack: ExitStack, *, shared: bool = False) -> int:
    """A descriptor of the directory that holds a flock until `stack` ends; read-only mounts share theirs.

    Raises PyunionError naming the process that has the lock.
    """
    fd = open_directory(path, _DIR)
    stack.callback(os.close, fd)
    deadline = time.monotonic() + _LOCK_WAIT_S
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise PyunionError(
                    f"{os.fsdecode(path)} is in use by {_lock_holder(fd)}; unmount that first, also in other mount "
                    "namespaces, which may have a copy of it",
                    ExitCode.BUSY,
                ) from None
            time.sleep(_LOCK_RETRY_S)
        except OSError as error:
            log.warning("cannot lock %r (%s): nothing keeps a second daemon from it", path, error.strerror)
            return fd
        else:
            return fd


def _lock_holder(fd: int) -> str:
    st = os.fstat(fd)
    wanted = f"{os.major(st.st_dev):02x}:{os.minor(st.st_dev):02x}:{st.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii") as locks:
            for line in locks:
                fields = line.split()
                if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == wanted:
                    return _process(int(fields[4]))
    except OSError:
        pass
    return "another process"


def _process(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().rstrip(b"\0").split(b"\0")
    except OSError:
        return f"process {pid}"
    return f"process {pid} ({os.fsdecode(b' '.join(words))[:200]})"


def open_work(work_root: int, path: bytes, *, volatile: bool) -> int:
    """WORK/work, empty, as the kernel keeps it; leftovers of a daemon that was killed are removed."""
    refuse_marked(work_root, path)
    try:
        if os.access(b"work", os.F_OK, dir_fd=work_root, follow_symlinks=False):
            remove_tree(work_root, b"work")
        os.mkdir(b"work", 0o700, dir_fd=work_root)
        if volatile:
            _mark_volatile(work_root)
        return os.open(b"work", _DIR | os.O_NOFOLLOW, dir_fd=work_root)
    except OSError as error:
        todo = "; make room there, or give -o ro for a read-only union" if error.errno in (ENOSPC, EDQUOT) else ""
        raise PyunionError(
            f"cannot prepare the work directory {os.fsdecode(path)}: {error.strerror}{todo}", ExitCode.WORK
        ) from None


def _mark_volatile(work_root: int) -> None:
    """Nobody shall mount the upper branch after us unawares, as a crash may have cost it what was never synced.

    The mark stays after a clean unmount: that syncs nothing either. Its directories have the kernel's names, and a mode
    that lets their owner remove them.
    """
    marker = _INCOMPATIBLE + b"/" + _VOLATILE
    os.mkdir(_INCOMPATIBLE, 0o700, dir_fd=work_root)
    os.mkdir(marker, 0o700, dir_fd=work_root)
    os.mknod(marker + b"/dirty", S_IFREG | 0o600, dir_fd=work_root)


def refuse_marked(work_root: int, path: bytes) -> None:
    """Raises PyunionError where an earlier mount has left a mark against all later ones."""
    place = os.path.join(path, _INCOMPATIBLE)
    try:
        fd = os.open(_INCOMPATIBLE, _DIR | os.O_NOFOLLOW, dir_fd=work_root)
        try:
            marked = [os.path.join(place, os.fsencode(name)) for name in os.listdir(fd)]
        finally:
            os.close(fd)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise PyunionError(
            f"cannot look for marks in {os.fsdecode(place)}: {error.strerror}; mount as the user that the work "
            "directory belongs to",
            ExitCode.WORK,
        ) from None
    volatile = os.path.join(place, _VOLATILE)
    if volatile in marked:
        raise PyunionError(
            f"work directory {os.fsdecode(path)} was last used by a volatile mount, after which the upper branch may "
            f"have lost data; when you are sure that it is whole, remove {os.fsdecode(volatile)}",
            ExitCode.WORK,
        )
    if marked:
        raise PyunionError(
            f"{os.fsdecode(marked[0])} marks a feature that pyunion does not have; mount the upper branch with what "
            "has left the mark, or use other directories",
            ExitCode.WORK,
        )
