"""File systems in files of their own: made, mounted by a loop device, and unmounted strictly."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.harness.files import run
from tests.harness.mounts import unmount

# As small as each can be made; ftype=1, XFS's default, is what overlayfs needs.
MAKE: dict[str, Sequence[str]] = {
    "ext4": ("mkfs.ext4", "-q"),
    "xfs": ("mkfs.xfs", "-q", "-n", "ftype=1"),
    "btrfs": ("mkfs.btrfs", "-q"),
    "ext4 without a journal": ("mkfs.ext4", "-q", "-O", "^has_journal"),
}
_MOUNT_BESIDE_COPIES = {"xfs": ",nouuid"}
_SIZE = 1 << 30  # bytes; the file is sparse
_GOING_DOWN = 0x8004587D  # XFS_IOC_GOINGDOWN, EXT4_IOC_SHUTDOWN


@contextmanager
def loop_mounted(kind: str, at: Path) -> Iterator[Path]:
    """A new file system of this kind, mounted on a new directory beside the file that holds it."""
    image = _image_of(at)
    with image.open("wb") as file:
        file.truncate(_SIZE)
    run(*MAKE[kind], image)
    with mounted_at(at, *_by_loop(kind, at)):
        yield at


def _image_of(at: Path) -> Path:
    return at.with_name(at.name + ".image")


def _by_loop(kind: str, at: Path) -> tuple[str | Path, ...]:
    return "mount", "-t", kind.split()[0], "-o", f"loop{_MOUNT_BESIDE_COPIES.get(kind, '')}", _image_of(at), at


def cut_power(at: Path, *, journal_written: bool) -> None:
    """From now on nothing reaches the disk of an XFS or ext4: what was not written is lost, or all but the journal."""
    fd = os.open(at, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, _GOING_DOWN, struct.pack("=I", 1 if journal_written else 2))
    finally:
        os.close(fd)


def power_up(kind: str, at: Path) -> None:
    """After cut_power(): mount the file system again, which recovers it by its journal."""
    unmount(at)
    image = _image_of(at)
    if run("losetup", "--associated", image):  # another mount namespace of the machine holds it, and what is in memory
        copy = image.with_suffix(".copy")
        run("cp", "--sparse=always", image, copy)
        copy.rename(image)
    run(*_by_loop(kind, at))


@contextmanager
def mounted_at(at: Path, *command: str | Path) -> Iterator[Path]:
    """What a command mounts on a directory, new if need be."""
    at.mkdir(exist_ok=True)
    run(*command)
    try:
        yield at
    finally:
        unmount(at)
