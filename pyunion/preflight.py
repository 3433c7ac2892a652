"""Whether a mount can work, asked before anything is changed: each "no" is one sentence that says what to do.

Owns the resolution of paths and the rules of which directories may lie where. Only looks: nothing is created, locked or
mounted here, and the daemon stays ready for the answers to change.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from stat import S_ISDIR
from typing import NamedTuple

from pyunion import mountinfo
from pyunion.branch import syscalls
from pyunion.config import MountConfig
from pyunion.errors import ExitCode, PyunionError

_FUSE = "/dev/fuse"


def prepare(config: MountConfig) -> MountConfig:
    """The same configuration with absolute paths free of symlinks, once it is known to be mountable."""
    lowers = [_Directory("lower branch", path) for path in config.lowers]
    mountpoint = _mountpoint(config.mountpoint)
    for lower in lowers:
        lower.check_access(os.R_OK | os.X_OK)
    _check_distinct(lowers)
    _check_mountpoint_visible(mountpoint, lowers)
    _check_lowers_apart(lowers)
    config = replace(config, lowers=tuple(lower.path for lower in lowers), mountpoint=mountpoint.path)
    if config.upper is not None and config.work is not None:
        upper = _Directory("upper branch", config.upper)
        work = _Directory("work directory", config.work)
        _check_apart(upper, work, lowers)
        _check_mountpoint_outside(mountpoint, upper, work)
        if not config.read_only:
            upper.check_access(os.R_OK | os.W_OK | os.X_OK)
            work.check_access(os.R_OK | os.W_OK | os.X_OK)
            _check_pair(upper, work)
            refuse_kernels(config.upper, config.work)
        config = replace(config, upper=upper.path, work=work.path)
    _check_fuse()
    return config


def check_lower(path: bytes, config: MountConfig, roots: Mapping[bytes, int]) -> bytes:
    """The resolved path of a further lower branch, once it is known to go with the branches of a running mount, whose
    paths and descriptors `roots` has. It asks the mount, and so must not be called by who answers for it."""
    lower = _Directory("lower branch", path)
    point = os.fsdecode(config.mountpoint)
    if lower.place.device == os.stat(config.mountpoint).st_dev:
        raise PyunionError(f"{lower} lies in the union on {point}; name a directory outside of it", ExitCode.BRANCH)
    lower.check_access(os.R_OK | os.X_OK)
    for known, fd in roots.items():
        st = os.fstat(fd)
        if lower.place == _Place(st.st_dev, st.st_ino):
            same = "" if known == lower.path else f", as {os.fsdecode(known)}"
            raise PyunionError(f"{lower} is a branch of {point} already{same}; name each branch once", ExitCode.BRANCH)
    if config.upper is not None and config.work is not None:
        _refuse_overlap(_Directory("upper branch", config.upper), lower)
        _refuse_overlap(_Directory("work directory", config.work), lower)
    for known, fd in roots.items():
        if (other := _still_at(known, os.fstat(fd))) is not None:
            _refuse_overlap(lower, other)
    around = _Directory("mount point", os.path.dirname(config.mountpoint))
    if around.is_inside(lower):
        _require_clone(around, lower)
    return lower.path


class _Place(NamedTuple):
    """What a directory is, under whatever name."""

    device: int
    inode: int


class _Directory:
    """A directory that the user has named, opened far enough to tell that it exists and is one."""

    def __init__(self, role: str, path: bytes) -> None:
        self.role = role
        self.given = os.fsdecode(path)
        try:
            self.path = os.path.realpath(os.path.abspath(path), strict=True)
            self.place = _covered(self.path) if role == "mount point" else _entered(self.path)
        except OSError as error:
            raise self.refusal(error.errno or 0) from None

    def __str__(self) -> str:
        return f"{self.role} {self.given}"

    def refusal(self, number: int) -> PyunionError:
        code = ExitCode.MOUNT if self.role == "mount point" else ExitCode.BRANCH
        if number == errno.ENOENT:
            return PyunionError(f"{self} does not exist; create it or correct the path", code)
        if number == errno.ENOTDIR:
            return PyunionError(f"{self} is not a directory", code)
        if number == errno.ENOTCONN:
            return PyunionError(
                f"{self} is a dead mount, whose daemon is gone; run `pyunion umount {self.given}` first", code
            )
        return PyunionError(f"{self} cannot be used: {os.strerror(number)}", code)

    def check_access(self, wanted: int) -> None:
        if os.access(self.path, wanted, effective_ids=True):
            return
        if wanted & os.W_OK and os.statvfs(self.path).f_flag & os.ST_RDONLY:
            raise PyunionError(
                f"{self} is on a read-only file system; name a writable one, or give -o ro for a read-only union",
                ExitCode.WORK,
            )
        kind = "written" if wanted & os.W_OK else "read"
        raise PyunionError(f"{self} cannot be {kind} by user {os.geteuid()}; correct its permissions", ExitCode.BRANCH)

    @cached_property
    def ancestors(self) -> frozenset[_Place]:
        """The directory itself and those around it that show it, up to where its file system is mounted."""
        return frozenset(_places_around(self.path))

    def is_inside(self, other: _Directory) -> bool:
        """Whether this directory is the other one or lies below it."""
        return other.place in self.ancestors


def _still_at(path: bytes, st: os.stat_result) -> _Directory | None:
    """A lower branch by its path, unless that has become another directory's since."""
    with suppress(PyunionError):
        found = _Directory("lower branch", path)
        if found.place == _Place(st.st_dev, st.st_ino):
            return found
    return None


def _place(path: bytes) -> _Place:
    st = os.stat(path)
    return _Place(st.st_dev, st.st_ino)


def _entered(path: bytes) -> _Place:
    """A directory to be used, which is mounted first if it is an automount."""
    place = _place(os.path.join(path, b""))  # the slash: nothing but a directory will do
    os.statvfs(path)  # asks the daemon behind a FUSE mount, where stat may answer from a cache
    return place


def _covered(path: bytes) -> _Place:
    """A directory to be mounted on. It may be an automount: whoever enters that waits until we have mounted, so that we
    only look at it."""
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)  # O_DIRECTORY would enter it
    try:
        st = os.fstat(fd)
        if not S_ISDIR(st.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        os.fstatvfs(fd)
        return _Place(st.st_dev, st.st_ino)
    finally:
        os.close(fd)


def _places_around(path: bytes) -> Iterator[_Place]:
    place = _place(path)
    yield place
    while (parent := os.path.dirname(path)) != path:
        above = _place(parent)
        # What is mounted in a branch is no part of it. A btrfs subvolume is, though its device is another one.
        if above.device != place.device and _mount_of(parent) != _mount_of(path):
            return
        yield above
        path, place = parent, above


def _mount_of(path: bytes) -> int:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return mountinfo.mount_id(fd)
    finally:
        os.close(fd)


def _mountpoint(path: bytes) -> _Directory:
    if not path:
        raise PyunionError("the mount point is empty; name a directory", ExitCode.USAGE)
    return _Directory("mount point", path)


def _check_distinct(lowers: list[_Directory]) -> None:
    seen: dict[_Place, _Directory] = {}
    for lower in lowers:
        first = seen.setdefault(lower.place, lower)
        if first is not lower:
            same = "" if first.given == lower.given else f", also as {first.given}"
            raise PyunionError(f"{lower} is named twice{same}; name each branch once", ExitCode.BRANCH)


def _check_lowers_apart(lowers: list[_Directory]) -> None:
    """None lies inside another one, as with overlayfs: an object would be in the union twice, and be two."""
    by_place = {lower.place: lower for lower in lowers}
    for lower in lowers:
        for place in lower.ancestors & by_place.keys():
            _refuse_overlap(lower, by_place[place])


def _check_apart(upper: _Directory, work: _Directory, lowers: list[_Directory]) -> None:
    """Upper and work share nothing with each other or with a lower branch."""
    _refuse_overlap(upper, work)
    for lower in lowers:
        _refuse_overlap(upper, lower)
        _refuse_overlap(work, lower)


def _refuse_overlap(one: _Directory, other: _Directory) -> None:
    if one is other:
        return
    if one.place == other.place:
        relation = f"{one} is the {other}"
    elif one.is_inside(other):
        relation = f"{one} lies inside the {other}"
    elif other.is_inside(one):
        relation = f"{other} lies inside the {one}"
    else:
        return
    raise PyunionError(f"{relation}; use directories that do not overlap", ExitCode.BRANCH)


def _check_mountpoint_visible(mountpoint: _Directory, lowers: list[_Directory]) -> None:
    """A clone of a lower branch does not show what is mounted in it later; without one the daemon meets itself."""
    for lower in lowers:
        if mountpoint.is_inside(lower) and mountpoint.place != lower.place:
            _require_clone(mountpoint, lower)


def _require_clone(mountpoint: _Directory, lower: _Directory) -> None:
    try:
        os.close(syscalls.open_readonly_clone(lower.path))
    except OSError:
        raise PyunionError(
            f"{mountpoint} lies inside the {lower}, which takes root and Linux 5.12; mount elsewhere",
            ExitCode.MOUNT,
        ) from None


def _check_mountpoint_outside(mountpoint: _Directory, upper: _Directory, work: _Directory) -> None:
    """Being upper itself, or above any branch, does no harm: branches are opened before the mount covers them."""
    for branch in (upper, work):
        if mountpoint.is_inside(branch) and mountpoint.place != upper.place:
            raise PyunionError(
                f"{mountpoint} lies inside the {branch}, so that the daemon would run into its own mount; "
                "mount elsewhere",
                ExitCode.MOUNT,
            )


def _check_pair(upper: _Directory, work: _Directory) -> None:
    """A rename from work into upper is what makes every change atomic."""
    if upper.place.device != work.place.device:
        raise PyunionError(
            f"{upper} and {work} are on different file systems; put the work directory beside the upper branch",
            ExitCode.WORK,
        )
    if _mount_of(upper.path) != _mount_of(work.path):
        raise PyunionError(
            f"{upper} and {work} are on different mounts of one file system, between which nothing can be renamed; "
            "reach both through the same mount",
            ExitCode.WORK,
        )


def refuse_kernels(*directories: bytes) -> None:
    """Raises PyunionError where the kernel's overlayfs writes to one of the directories; it takes no lock on them.

    A pyunion mount has one, and is found by that.
    """
    kernels = [mount for mount in mountinfo.read() if mount.fstype == "overlay"]
    for given in directories:
        path = os.path.realpath(given)
        for mount in kernels:
            if path in _written_by(mount).values():
                raise PyunionError(
                    f"{os.fsdecode(given)} is in use by the overlay mount on {os.fsdecode(mount.point)}; unmount that "
                    "first",
                    ExitCode.BUSY,
                )


def work_of_overlay(upper: bytes) -> bytes | None:
    """The work directory with which the kernel's overlayfs has an upper branch mounted, if it has."""
    path = os.path.realpath(upper)
    for mount in mountinfo.read():
        if mount.fstype == "overlay":
            found = _written_by(mount)
            if found.get(b"upper") == path:
                return found.get(b"work")
    return None


def _written_by(mount: mountinfo.Mounted) -> dict[bytes, bytes]:
    """The upper and work directories of an overlay mount, from its options in mountinfo."""
    found = re.findall(rb"(?:^|,)(upper|work)dir=((?:\\.|[^,\\])*)", mount.options)
    return {role: os.path.realpath(re.sub(rb"\\(.)", rb"\1", path)) for role, path in found}


def fuse_problem() -> str | None:
    """Why this process cannot use the FUSE device, None if it can."""
    try:
        os.close(os.open(_FUSE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return f"{_FUSE} does not exist; run `modprobe fuse`, or give the container `--device {_FUSE}`"
        if error.errno in (errno.ENXIO, errno.ENODEV):
            return f"{_FUSE} has no driver behind it; run `modprobe fuse`"
        if error.errno == errno.EACCES:
            return f"{_FUSE} may not be opened by user {os.geteuid()}; its mode is usually 0666"
        return f"{_FUSE} cannot be opened: {error.strerror}; a container needs `--device {_FUSE}`"
    return None


def _check_fuse() -> None:
    problem = fuse_problem()
    if problem is None and os.geteuid() != 0 and not _in_path("fusermount3"):
        problem = "fusermount3 is not in PATH, and only root can mount without it; install the package fuse3"
    if problem is not None:
        raise PyunionError(problem, ExitCode.MOUNT)


def _in_path(program: str) -> bool:
    return any(os.access(os.path.join(folder, program), os.X_OK) for folder in os.get_exec_path())
