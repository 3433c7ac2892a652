"""Tar archives: the root of an image for containers, and what an archive holds as values that can be compared."""

from __future__ import annotations

import hashlib
import io
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Member(NamedTuple):
    """An entry of a layer, all but its times, which are those of the run."""

    kind: bytes
    mode: int
    owner: tuple[int, int]
    link: str
    device: tuple[int, int]
    content: str
    xattrs: tuple[tuple[str, str], ...]


def write_base(path: Path) -> None:
    """The root of an image, made from the static busybox: programs, and something of each kind to change."""
    busybox = Path("/bin/busybox").resolve()
    with tarfile.open(path, "w") as archive:
        for folder in ("bin", "etc", "data", "data/deep", "data/deep/er", "old", "tmp"):
            _add(archive, folder, type=tarfile.DIRTYPE, mode=0o1777 if folder == "tmp" else 0o755)
        archive.add(busybox, "bin/busybox")
        listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
        for name in sorted(set(listed) - {"busybox"}):
            _add(archive, f"bin/{name}", type=tarfile.SYMTYPE, linkname="busybox")
        for name in ("etc/passwd", "etc/motd", "data/one", "data/deep/two", "data/deep/er/three", "old/file"):
            _add(archive, name, f"{name} of base\n".encode())
        _add(archive, "data/suid", b"suid\n", mode=0o4755)
        _add(archive, "data/owned", b"owned\n", uid=7, gid=8)
        _add(archive, "data/link", type=tarfile.LNKTYPE, linkname="data/one")
        _add(archive, "data/pipe", type=tarfile.FIFOTYPE)
        _add(archive, "data/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)


def _add(archive: tarfile.TarFile, name: str, content: bytes = b"", mode: int = 0o644, **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.mode, member.mtime, member.size = mode, 1_600_000_000, len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(content))


def members(path: Path) -> dict[str, Member]:
    """What an archive holds, by name."""
    with tarfile.open(path) as archive:
        return dict(_read(archive))


def _read(archive: tarfile.TarFile) -> Iterator[tuple[str, Member]]:
    for entry in archive:
        file = archive.extractfile(entry) if entry.isreg() else None
        digest = hashlib.sha1(file.read(), usedforsecurity=False).hexdigest() if file else ""
        xattrs = tuple(sorted((key, value) for key, value in entry.pax_headers.items() if key.startswith("SCHILY")))
        yield (
            entry.name.strip("/"),
            Member(
                entry.type,
                stat.S_IMODE(entry.mode),  # some writers add the type to it
                (entry.uid, entry.gid),
                entry.linkname,
                (entry.devmajor, entry.devminor),
                digest,
                xattrs,
            ),
        )
