"""Read-only branches on file systems of every kind, each with the contents of one directory.

A recipe takes that directory and a new path, and yields the branch. Knows nothing of unions, except that the kernel's
overlayfs is one of the kinds.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.harness.files import run
from tests.harness.filesystems import loop_mounted, mounted_at

# The server of sftp(1) as Debian and as Fedora have it; sshfs speaks to it by a pipe, where ssh(1) would be.
_SFTP_SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server")


def copy(source: Path, to: Path) -> None:
    """Everything that `source` holds, with owners, times, links, holes and xattrs where `to` has such."""
    run("cp", "-a", "--sparse=auto", "--reflink=never", f"{source}/.", to)


@contextmanager
def squashfs(source: Path, at: Path) -> Iterator[Path]:
    image = at.with_suffix(".image")
    run("mksquashfs", source, image, "-quiet", "-no-progress")
    with mounted_at(at, "mount", "-t", "squashfs", "-o", "loop", image, at):
        yield at


@contextmanager
def erofs(source: Path, at: Path) -> Iterator[Path]:
    image = at.with_suffix(".image")
    run("mkfs.erofs", image, source)
    with mounted_at(at, "mount", "-t", "erofs", "-o", "loop", image, at):
        yield at


@contextmanager
def sshfs(source: Path, at: Path) -> Iterator[Path]:
    server = next(path for path in _SFTP_SERVERS if Path(path).exists())
    command = at.with_suffix(".server")
    command.write_text(f"#!/bin/sh\nexec {server}\n")
    command.chmod(0o755)
    for path in source.glob("**/*"):
        if path.is_char_device():
            path.unlink()  # by sftp devices have no numbers, and without these they are whiteouts
    with mounted_at(at, "sshfs", "-o", f"ro,ssh_command={command}", f"here:{source}", at):
        yield at


@contextmanager
def bindfs(source: Path, at: Path) -> Iterator[Path]:
    """Another one by FUSE, which in contrast to sshfs shows hard links and xattrs."""
    with mounted_at(at, "bindfs", "--no-allow-other", "-o", "ro", source, at):
        yield at


@contextmanager
def xfs_readonly(source: Path, at: Path) -> Iterator[Path]:
    with loop_mounted("xfs", at):
        copy(source, at)
        run("mount", "-o", "remount,ro", at)
        yield at


@contextmanager
def btrfs_snapshot(source: Path, at: Path) -> Iterator[Path]:
    with loop_mounted("btrfs", at):
        run("btrfs", "subvolume", "create", at / "original")
        copy(source, at / "original")
        run("btrfs", "subvolume", "snapshot", "-r", at / "original", at / "snapshot")
        shutil.rmtree(at / "original")
        yield at / "snapshot"


@contextmanager
def tmpfs(source: Path, at: Path) -> Iterator[Path]:
    with mounted_at(at, "mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", at):
        copy(source, at)
        yield at


@contextmanager
def overlayfs(source: Path, at: Path) -> Iterator[Path]:
    """The kernel's union, half of it in its lower and half of it in its upper branch."""
    lower, upper, work = (at.with_suffix(f".{part}") for part in ("lower", "upper", "work"))
    for path in (lower, upper, work):
        path.mkdir()
    copy(source, lower)
    with mounted_at(at, "mount", "-t", "overlay", "-o", f"lowerdir={lower},upperdir={upper},workdir={work}", "-", at):
        for path in sorted(at.glob("*/*"))[::2]:
            if path.is_file() and not path.is_symlink() and path.stat().st_nlink == 1:
                path.touch()  # copied up
                shutil.copystat(lower / path.relative_to(at), path)
        run("mount", "-o", "remount,ro", at)
        yield at


KINDS: dict[str, Callable[[Path, Path], AbstractContextManager[Path]]] = {
    recipe.__name__: recipe
    for recipe in (squashfs, erofs, sshfs, bindfs, xfs_readonly, btrfs_snapshot, tmpfs, overlayfs)
}
