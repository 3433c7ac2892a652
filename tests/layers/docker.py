"""A dockerd of its own, with everything that it keeps in one directory, and no network.

Knows docker by its command line. Nothing of the machine's own containers is touched.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import tarfile
import time
from pathlib import Path

from tests.harness.files import run
from tests.harness.mounts import PATIENCE, mounted
from tests.harness.ready import readable

LIMITS = ("--ulimit", "nofile=20000:20000", "--ulimit", "nproc=1000:1000", "--network", "none")
_FILES = {
    "etc/motd": "hello\n",
    "d/a": "a\n",
    "d/sub/b": "b\n",
    "d/sub/deep/c": "c\n",
    "old/o": "o\n",
    "replaced/r": "r\n",
    "was-file": "f\n",
    "was-dir/x": "x\n",
    "same": "same\n",
    "kept/sub/k": "k\n",
    "tmp/t": "t\n",
}


class Docker:
    """A running daemon with the image `base`."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir()
        self._socket = home / "socket"
        folders = ("--data-root", home / "data", "--exec-root", home / "exec", "--pidfile", home / "pid")
        with (home / "log").open("wb") as log:
            self._daemon = subprocess.Popen(
                ["dockerd", "--iptables=false", "--bridge=none", "-H", f"unix://{self._socket}", *folders],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._wait_ready()
            write_base(home / "base.tar")
            self("import", home / "base.tar", "base")
        except BaseException:
            self.close()
            raise

    def __call__(self, *arguments: str | Path) -> str:
        """Run docker; returns what it prints."""
        return run("docker", "-H", f"unix://{self._socket}", *arguments).strip()

    def shell(self, name: str, script: str, image: str = "base") -> None:
        """Run a shell script in a new container, which stays."""
        self("run", "--name", name, *LIMITS, image, "/bin/sh", "-ec", script)

    def layers(self, container: str) -> tuple[Path, str]:
        """Upper and lower directories of a container."""
        data = "{{.GraphDriver.Data.UpperDir}} {{.GraphDriver.Data.LowerDir}}"
        upper, lower = self("inspect", "--format", data, container).split()
        return Path(upper), lower

    def _wait_ready(self) -> None:
        """It answers, or ends with a reason in its log. It has no way to say that it is ready."""
        end = time.monotonic() + PATIENCE
        death = os.pidfd_open(self._daemon.pid)
        try:
            while subprocess.run(
                ["docker", "-H", f"unix://{self._socket}", "version"], capture_output=True, stdin=subprocess.DEVNULL
            ).returncode:
                ended = readable(death, seconds=0.1)
                if ended or time.monotonic() > end:
                    raise AssertionError(f"dockerd does not answer:\n{(self.home / 'log').read_text()}")
        finally:
            os.close(death)

    def close(self) -> None:
        self._daemon.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._daemon.wait(PATIENCE)
        self._daemon.kill()
        for mount in reversed(mounted()):
            if mount.point.startswith(os.fsencode(self.home) + b"/"):
                subprocess.run(["umount", "--lazy", mount.point], capture_output=True)


def write_base(path: Path) -> None:
    """A root file system with the static busybox and a few files."""
    with tarfile.open(path, "w") as archive:
        for folder in sorted({str(parent) for name in _FILES for parent in Path(name).parents} - {"."} | {"bin"}):
            _add(archive, folder, type=tarfile.DIRTYPE, mode=0o755)
        busybox = Path("/bin/busybox").resolve()
        archive.add(busybox, "bin/busybox")
        listed = run(busybox, "--list").split()
        for name in sorted(set(listed) - {"busybox"}):
            _add(archive, f"bin/{name}", type=tarfile.SYMTYPE, linkname="busybox")
        for name, text in _FILES.items():
            _add(archive, name, text.encode())


def _add(archive: tarfile.TarFile, name: str, content: bytes = b"", mode: int = 0o644, **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.mode, member.mtime, member.size = mode, 1_600_000_000, len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(content))
