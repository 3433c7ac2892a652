"""The daemon: builds everything in order, serves, and takes everything down in reverse.

One exit stack owns the descriptors, locks and the session. Knows how the parts fit together and nothing of what
they do.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Callable
from contextlib import ExitStack

import trio

from pyunion.branch import opening, syscalls
from pyunion.branch.dirs import Branch, DirCache
from pyunion.branch.probe import UpperFeatures, probe_upper
from pyunion.branch.work import Work
from pyunion.config import MountConfig
from pyunion.fs.filesystem import FileSystem, Settings
from pyunion.fuse.session import Session
from pyunion.union import marks

log = logging.getLogger(__name__)

_MOST_CACHED_DIRS = 8192


def serve(
    config: MountConfig, ready: Callable[[], None], stopping: Callable[[], None] = lambda: None
) -> None:
    """Mount and answer requests until the mount ends.

    `ready` is called when the mount answers, `stopping` when a signal asks for the end. Raises PyunionError.
    """
    os.umask(0)  # modes come from the callers
    limit = _raise_descriptor_limit()
    with ExitStack() as stack:
        cache = DirCache(min(limit // 4, _MOST_CACHED_DIRS))
        fs = _build(config, cache, stack)
        stack.callback(fs.files.close_all)
        session = Session(
            fs, config.mountpoint, config.fsname, config.mount_flags, config.read_only or config.upper is None
        )
        stack.callback(session.close)
        trio.run(session.serve, ready, stopping)


def _build(config: MountConfig, cache: DirCache, stack: ExitStack) -> FileSystem:
    prefix = marks.USER if config.userxattr else marks.TRUSTED
    writable = config.upper is not None and not config.read_only
    lower_paths = list(config.lowers)
    if config.upper is not None and not writable:
        lower_paths.insert(0, config.upper)
    branches: list[Branch] = []
    work: Work | None = None
    features: UpperFeatures | None = None
    if writable:
        assert config.upper is not None
        assert config.work is not None
        opening.lock_directory(config.upper, stack)
        work_root = opening.lock_directory(config.work, stack)
        work_fd = opening.open_work(work_root, config.work)
        stack.callback(os.close, work_fd)
        features = probe_upper(work_fd, config.userxattr)
        for reason in features.reasons:
            log.warning("%s", reason)
        if features.xattr_prefix is not None:
            prefix = features.xattr_prefix
        branches.append(opening.open_upper(config.upper, cache, stack, features.xattr_prefix))
        work = Work(
            work_fd, features.xattr_prefix, sync=not config.volatile, device_whiteouts=features.whiteout_device
        )
    branches += opening.open_lowers(
        lower_paths, cache, stack, first_index=len(branches), xattr_prefix=prefix, aufs=config.aufs
    )
    return FileSystem(branches, work, _settings(config, features, prefix))


def _settings(config: MountConfig, features: UpperFeatures | None, prefix: bytes) -> Settings:
    return Settings(
        redirect_dir=config.redirect_dir,
        follow_redirects=config.follow_redirects,
        metacopy=config.metacopy,
        writeback=config.writeback and features is not None,
        sync=not config.volatile,
        rename_whiteout=features is not None and features.rename_whiteout,
        switch_ids=os.geteuid() == 0 and syscalls.keep_capabilities_over_setfsuid(),
        xattr_prefix=prefix,
    )


def _raise_descriptor_limit() -> int:
    """As many descriptors as we may have: each open file of the mount's users is one of ours."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = 1 << 20
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
