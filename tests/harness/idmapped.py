"""The kernel's answer to mapped owners: overlayfs over layers that are reached by an idmapped mount.

Takes the options of pyunion (uidmapping=, gidmapping=) and sets up the same by mount_setattr(2), Linux 5.12 and, for
overlayfs, 5.19. Knows nothing of what is on the branches.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.harness.mounts import KernelMount, Layers, unmount

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = 1, 4
_MOUNT_ATTR_IDMAP = 0x100000

_libc = ctypes.CDLL(None, use_errno=True)


class IdmappedKernelMount(KernelMount):
    """The kernel's overlayfs; all layers are below `base`, which shows other owners on a mount beside the union."""

    def __init__(self, point: Path, base: Path) -> None:
        super().__init__(point)
        self._base = base
        self._shown = point.with_name("idmapped")

    def _start(self, layers: Layers, options: Sequence[str]) -> None:
        said = dict(option.split("=") for option in options)
        maps = [_as_kernel_map(said.pop(key)) for key in ("uidmapping", "gidmapping")]
        self._shown.mkdir(exist_ok=True)
        idmapped_mount(self._base, self._shown, *maps)
        lowers = [self._as_shown(lower) for lower in layers.lowers]
        assert layers.upper is not None
        assert layers.work is not None
        shown = Layers(lowers, self._as_shown(layers.upper), self._as_shown(layers.work))
        super()._start(shown, [f"{key}={value}" for key, value in said.items()])

    def _as_shown(self, path: Path) -> Path:
        return self._shown / path.relative_to(self._base)

    def _stopped(self) -> None:
        unmount(self._shown)

    def abandon(self) -> None:
        super().abandon()
        subprocess.run(["umount", "--lazy", self._shown], capture_output=True)


def _as_kernel_map(ranges: str) -> str:
    """STORED:SHOWN:COUNT as lines of a uid_map: the same numbers in the same order."""
    numbers = ranges.split(":")
    return "".join(" ".join(numbers[at : at + 3]) + "\n" for at in range(0, len(numbers), 3))


def idmapped_mount(source: Path, point: Path, uid_map: str, gid_map: str) -> None:
    """Mount a directory on `point` with other owners, those of a user namespace with these maps."""
    with _user_namespace(uid_map, gid_map) as namespace:
        tree = _call(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | os.O_CLOEXEC)
        try:
            attr = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_IDMAP, 0, 0, namespace)
            _call(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attr), ctypes.c_ulong(32))
            _call(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(point), _MOVE_MOUNT_F_EMPTY_PATH)
        finally:
            os.close(tree)


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


@contextmanager
def _user_namespace(uid_map: str, gid_map: str) -> Iterator[int]:
    """A descriptor of a user namespace; it needs no process once it is open."""
    command = ["unshare", "--user", "sh", "-c", "echo; read wait"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it is in the namespace now
        for name, text in (("uid_map", uid_map), ("gid_map", gid_map)):
            Path(f"/proc/{process.pid}/{name}").write_text(text)
        fd = os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        process.communicate()
    try:
        yield fd
    finally:
        os.close(fd)
