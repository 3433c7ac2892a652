"""The daemon: builds everything in order, serves, and takes everything down in reverse.

One exit stack owns the descriptors, locks and the session. Knows how the parts fit together and nothing of what
they do.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import trio

from pyunion import board, mountinfo
from pyunion.awake import Awake, open_latency
from pyunion.branch import opening, syscalls
from pyunion.branch.copyup import Terms
from pyunion.branch.dirs import Branch, DirCache
from pyunion.branch.handles import Origins
from pyunion.branch.index import Index, make_index_directory, open_index_directory
from pyunion.branch.ordering import keeps_order
from pyunion.branch.probe import UpperFeatures, probe_upper
from pyunion.branch.work import Work
from pyunion.config import MountConfig
from pyunion.control import address
from pyunion.control.facts import Facts
from pyunion.control.server import Server
from pyunion.fs.filesystem import FileSystem, Settings
from pyunion.fuse.backing import Backing
from pyunion.fuse.session import Session, signals_held
from pyunion.live import Live
from pyunion.notify import Listener
from pyunion.union import marks
from pyunion.union.ids import NO_ID, Owners

log = logging.getLogger(__name__)

_MOST_CACHED_DIRS = 8192
_STACKED = ("overlay", "fuse", "ecryptfs")


def serve(config: MountConfig, listener: Listener) -> bool:
    """Mount and answer requests until the mount ends, and give the listener news of it; returns whether that was by
    Ctrl-C. Raises PyunionError."""
    os.umask(0)  # modes come from the callers
    limit = _raise_descriptor_limit()
    with ExitStack() as stack:
        cache = DirCache(min(limit // 4, _MOST_CACHED_DIRS))
        fs = _build(config, cache, stack)
        stack.callback(fs.files.close_all)
        backing = Backing(fs.files)
        control, published = address.listen(stack)
        facts = Facts(config, fs, backing)
        stack.enter_context(signals_held())
        if config.metrics is not None:
            facts.metrics = _serve_metrics(config.metrics, facts, stack)
        board_fd = _published(config, fs, published)
        stack.callback(os.close, board_fd)
        read_only = config.read_only or config.upper is None
        awake = Awake(open_latency() if config.awake else -1)
        session = Session(fs, backing, awake, config.mountpoint, config.fsname, config.mount_flags, read_only)
        stack.callback(session.close)
        live = Live(config, fs, stack, partial(_publish_anew, board_fd, fs=fs, control=published))
        server = Server(control, session.recording, facts.status, live.change, fs.settings.owners.uids.overflow)
        # What is there now stays: no collection has to look through it, least of all those of the interpreter's end.
        gc.freeze()
        trio.run(session.serve, listener, server.serve)
    return session.interrupted


def _published(config: MountConfig, fs: FileSystem, control: address.Published) -> int:
    """Say what is mounted, and where commands find the rest; the descriptor that says it."""
    roots = [layer.fd() for layer in (*fs.table.root.layers, *fs.lookup.data_layers)]
    index = fs.lookup.index
    return board.publish(
        config,
        branches=roots,
        index=None if index is None else index.dir.fd(),
        xattr_prefix=os.fsdecode(fs.settings.xattr_prefix),
        control=control,
    )


def _publish_anew(fd: int, config: MountConfig, *, fs: FileSystem, control: address.Published) -> None:
    """Say it by the same descriptor: who reads has the old text or the new one."""
    new = _published(config, fs, control)
    os.dup2(new, fd, inheritable=False)
    os.close(new)


def _serve_metrics(wanted: str, facts: Facts, stack: ExitStack) -> str:
    from pyunion.control import metrics  # prometheus_client is for those who ask for it

    return metrics.serve(wanted, facts, stack)


class _Top(NamedTuple):
    """What only a union with an upper branch has."""

    upper: Branch
    work_root: int
    work: Work | None  # None in a read-only mount, as are the features
    features: UpperFeatures | None


def _build(config: MountConfig, cache: DirCache, stack: ExitStack) -> FileSystem:
    owners = _owners(config)
    top: _Top | None = None
    if config.upper is not None and config.work is not None:
        if config.read_only:
            top = _open_readonly(config.upper, config.work, _prefix_to_read(config, owners), cache, stack)
        else:
            top = _open_writable(config, config.upper, config.work, owners, cache, stack)
    prefix = (top and top.upper.xattr_prefix) or (marks.USER if config.userxattr else marks.TRUSTED)
    lowers = opening.open_lowers(
        config.lowers,
        cache,
        stack,
        first_index=0 if top is None else 1,
        xattr_prefix=prefix,
        aufs=config.aufs,
        data_only=config.data_only,
        patient=True,
    )
    merged = len(lowers) - config.data_only
    lowers, data = lowers[:merged], lowers[merged:]
    if top is None:
        return FileSystem(lowers, None, _settings(config, top, prefix, owners), data_branches=data)
    origins = index = None
    if top.upper.xattr_prefix == marks.TRUSTED:
        origins = Origins(lowers, stack)
        if config.index is not False:
            index = _open_index(config, origins, top.work_root, cache, stack)
    settings = _settings(config, top, prefix, owners)
    return FileSystem([top.upper, *lowers], top.work, settings, origins, index, data)


def _prefix_to_read(config: MountConfig, owners: Owners) -> bytes:
    """Of the marks that a writable mount would leave: trusted.* is for root, and not in a user namespace."""
    return marks.TRUSTED if _root(owners) and not config.userxattr else marks.USER


def _open_writable(
    config: MountConfig, upper: bytes, work: bytes, owners: Owners, cache: DirCache, stack: ExitStack
) -> _Top:
    opening.lock_directory(upper, stack)
    work_root = opening.lock_directory(work, stack)
    work_fd = opening.open_work(work_root, work, volatile=config.volatile)
    stack.callback(os.close, work_fd)
    features = probe_upper(work_fd, config.userxattr)
    for reason in features.reasons:
        log.warning("%s", reason)
    terms = Terms(
        features.xattr_prefix,
        config.syncs,
        keeps_order(work_fd),
        features.reflink,
        owners.uids.overflow,
        owners.gids.overflow,
        must_chown=os.geteuid() == 0,
    )
    branch = opening.open_upper(upper, cache, stack, features.xattr_prefix)
    st = os.fstat(branch.root.fd())
    if NO_ID in (owners.uids.shown(st.st_uid), owners.gids.shown(st.st_gid)):
        log.warning("%r belongs to a user or group outside of the mapping: nothing can be made in it; chown it", upper)
    return _Top(
        branch,
        work_root,
        Work(work_fd, terms, device_whiteouts=features.whiteout_device),
        features,
    )


def _open_readonly(upper: bytes, work: bytes, xattr_prefix: bytes, cache: DirCache, stack: ExitStack) -> _Top:
    """Upper stays what it is, with its origins and the index, as with the kernel's `ro`; nothing is written, not even
    to the work directory, so that both may be on a read-only file system."""
    opening.lock_directory(upper, stack, shared=True)
    work_root = opening.lock_directory(work, stack, shared=True)
    opening.refuse_marked(work_root, work)
    branch = opening.open_upper(upper, cache, stack, xattr_prefix, read_only=True)
    return _Top(branch, work_root, None, None)


def _open_index(
    config: MountConfig, origins: Origins, work_root: int, cache: DirCache, stack: ExitStack
) -> Index | None:
    """The index, where every lower branch has lasting file handles to find its files by."""
    if not origins.usable:
        log.log(
            logging.WARNING if config.index else logging.INFO,
            "a lower branch has no lasting file handles: index=off, and copy_up parts the hard links of a lower file",
        )
        return None
    try:
        if not config.read_only:
            make_index_directory(work_root)
        fd = open_index_directory(work_root)
    except FileNotFoundError:
        return None  # the union was never written to
    stack.callback(os.close, fd)
    return Index(Branch(0, b"index", fd, cache, is_upper=True))


def _owners(config: MountConfig) -> Owners:
    """The mappings that the user asked for, completed for the user namespace that we are in."""
    uids, gids = config.owners
    return Owners(
        uids._replace(overflow=_unmapped("uid"), own=os.geteuid()),
        gids._replace(overflow=_unmapped("gid"), own=os.getegid()),
    )


def _unmapped(kind: str) -> int | None:
    """The overflow id if it stands for ids that this namespace does not have; None where it is an id like others."""
    with open(f"/proc/sys/kernel/overflow{kind}", encoding="ascii") as file:
        overflow = int(file.read())
    with open(f"/proc/self/{kind}_map", encoding="ascii") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    return None if any(inside <= overflow < inside + count for inside, _, count in ranges) else overflow


def _root(owners: Owners) -> bool:
    """Whether we are root, and not only in a user namespace."""
    return os.geteuid() == 0 and owners.uids.overflow is None


def _can_pass_through(config: MountConfig, top: _Top | None, owners: Owners) -> bool:
    """As far as it can be told before the kernel says whether it can. A branch knows nothing of the mount's flags."""
    by_requests = "noatime" in config.mount_flags or "sync" in config.mount_flags
    return _root(owners) and not by_requests and (top is None or not _is_stacked(top.upper.root.fd()))


def _is_stacked(fd: int) -> bool:
    """Whether a file is on a file system that has its files on another one: these cannot be passed through."""
    number = mountinfo.mount_id(fd)
    return any(mount.mount_id == number and mount.fstype.startswith(_STACKED) for mount in mountinfo.read())


def _settings(config: MountConfig, top: _Top | None, prefix: bytes, owners: Owners) -> Settings:
    features = None if top is None else top.features
    return Settings(
        redirect_dir=config.redirect_dir,
        follow_redirects=config.follow_redirects,
        metacopy=config.metacopy,
        writeback=config.writeback and features is not None,
        passthrough=config.passthrough and _can_pass_through(config, top, owners),
        passthrough_lower=config.passthrough_lower,
        opens_later=_root(owners),
        noatime="noatime" in config.mount_flags,
        sync=config.syncs,
        rename_whiteout=features is not None and features.rename_whiteout,
        switch_ids=os.geteuid() == 0 and syscalls.keep_capabilities_over_setfsuid(),
        xattr_prefix=prefix,
        owners=owners,
    )


def _raise_descriptor_limit() -> int:
    """As many descriptors as we may have: each open file of the mount's users is one of ours."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
