"""How the data of a copy come to the disk before its name does.

A copy that is renamed into upper before its data are on the disk can be short or empty after a power cut. fsync(2) is
the sure way, and asks for more than is needed: that the copy is on the disk now. Where a file system keeps changes of
metadata in the order in which they were made, it is enough that the data are written before the rename begins; the
journal brings the rename later, and flushes the disk's own cache with it. Owns which file systems those are.
"""

from __future__ import annotations

import os
from errno import ENOSYS

from pyunion.branch import syscalls

_EXT4, _XFS = 0xEF53, 0x58465342  # statfs(2)
_WRITES_ALL = (5, 2)  # Linux, from which sync_file_range(2) leaves no page out (commit c553ea4fdf2)


def keeps_order(fd: int) -> bool:
    """Whether the file system of an open directory is one of those, as far as we know.

    ext4 and XFS end the write of a page when the extent (and with it the size) is in the journal's order (ext4:
    ext4_end_io_end, XFS: xfs_end_ioend); btrfs does not, so it is not one of them, nor is ext4 without a journal.
    """
    if _release() < _WRITES_ALL:
        return False
    kind = syscalls.filesystem_type(fd)
    return kind == _XFS or (kind == _EXT4 and _has_journal(os.fstat(fd).st_dev))


def write_out(fd: int, ordered: bool) -> None:
    """Do what a later rename of the file needs so that its data are never missed. Raises OSError, EIO among them."""
    if not (ordered and _write_and_wait(fd)):
        os.fsync(fd)


def _write_and_wait(fd: int) -> bool:
    """Whether the data were written; a sandbox may not have the call."""
    try:
        syscalls.write_and_wait(fd)
    except OSError as error:
        if error.errno != ENOSYS:
            raise
        return False
    return True


def _release() -> tuple[int, ...]:
    return tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2] if part.isdigit())


def _has_journal(device: int) -> bool:
    """Of an ext4: /sys/fs/ext4/NAME/journal_task is the number of the journal's thread, or `<none>`."""
    try:
        name = os.path.basename(os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))
        with open(f"/sys/fs/ext4/{name}/journal_task") as file:
            return file.read().strip().isdigit()
    except OSError:
        return False
