"""File systems in files of their own: made, mounted by a loop device, and unmounted strictly."""

from __future__ import annotations

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
_SIZE = 1 << 30  # bytes; the file is sparse


@contextmanager
def loop_mounted(kind: str, at: Path) -> Iterator[Path]:
    """A new file system of this kind, mounted on a new directory beside the file that holds it."""
    image = at.with_name(at.name + ".image")
    with image.open("wb") as file:
        file.truncate(_SIZE)
    run(*MAKE[kind], image)
    with mounted_at(at, "mount", "-t", kind.split()[0], "-o", "loop", image, at):
        yield at


@contextmanager
def mounted_at(at: Path, *command: str | Path) -> Iterator[Path]:
    """What a command mounts on a directory, new if need be."""
    at.mkdir(exist_ok=True)
    run(*command)
    try:
        yield at
    finally:
        unmount(at)
