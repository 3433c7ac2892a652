"""A container storage of its own, and what is in the images of it.

Knows podman and buildah by their command lines and a mount program by its path. Nothing of the machine's own containers
is touched: the storage, its state and all configuration are in one directory.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from tests.harness.archives import Member, members, write_base
from tests.harness.leaks import await_end
from tests.harness.mounts import PATIENCE, REPOSITORY, mounted

PROGRAMS = {"pyunion": REPOSITORY / "scripts/pyunion", "fuse-overlayfs": Path("/usr/bin/fuse-overlayfs")}

# podman's own defaults need what a container on a test machine often has not: systemd, high limits, a network.
_CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=1000:1000"]
netns = "none"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "{runtime}"
tmp_dir = "{home}/tmp"
"""
_STORAGE_CONF = """\
[storage]
driver = "overlay"
graphroot = "{home}/root"
runroot = "{home}/run"
[storage.options.overlay]
mount_program = "{program}"
mountopt = "{options}"
"""
# What runs podman. crun 1.8 refuses cgroups of both versions at once, so there it finds one of them only.
_ONE_VERSION = "if mountpoint -q /sys/fs/cgroup/unified; then umount /sys/fs/cgroup/unified; fi"
_WITHIN: dict[str, list[str]] = {
    "runc": [],
    "crun": ["unshare", "--mount", "sh", "-ec", f'{_ONE_VERSION}; exec "$@"', "sh"],
}
_POLICY = {"default": [{"type": "insecureAcceptAnything"}]}


class Store:
    """podman and buildah on one storage, whose containers are mounted by one program."""

    def __init__(self, home: Path, program: Path, runtime: str = "runc") -> None:
        self.home = home
        self.within = _WITHIN[runtime]
        home.mkdir()
        (home / "containers.conf").write_text(_CONTAINERS_CONF.format(home=home, runtime=runtime))
        self._program = program
        self.set_mount_options("nodev,metacopy=on")
        (home / "policy.json").write_text(json.dumps(_POLICY))
        self._environment = {
            "CONTAINERS_CONF": str(home / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(home / "storage.conf"),
            "HOME": str(home),
            "LC_ALL": "C",
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        }

    def set_mount_options(self, options: str) -> None:
        storage = _STORAGE_CONF.format(home=self.home, program=self._program, options=options)
        (self.home / "storage.conf").write_text(storage)

    def start(self, *command: str | Path, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.within, *map(str, command)],
            cwd=self.home,
            env=self._environment | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _run(self, *command: str | Path, **environment: str) -> str:
        with self.start(*command, **environment) as process:
            out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, f"{' '.join(map(str, command))}: status {process.returncode}\n{err}"
        return out.strip()

    def podman(self, *arguments: str | Path, **environment: str) -> str:
        """Run podman; returns what it prints."""
        return self._run("podman", *arguments, **environment)

    def buildah(self, *arguments: str | Path) -> str:
        return self._run("buildah", *arguments)

    def base(self) -> None:
        """Import the image `base`, made from the static busybox: programs, and something of each kind to change."""
        archive = self.home / "base.tar"
        write_base(archive)
        self.podman("import", "--quiet", archive, "base")

    def shell(self, script: str, *options: str, image: str = "base") -> str:
        """Run a shell script in a new container."""
        return self.podman("run", *options, image, "sh", "-ec", script)

    def layers(self, image: str) -> list[dict[str, Member]]:
        """What the layers of an image hold, the lowest first."""
        folder = self.home / "saved"
        self.podman("save", "--quiet", "--format", "docker-dir", "--output", folder, image)
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            digests = [layer["digest"].removeprefix("sha256:") for layer in manifest["layers"]]
            return [members(folder / digest) for digest in digests]
        finally:
            shutil.rmtree(folder)

    def mounts(self) -> list[Path]:
        """The unions that are mounted for this storage."""
        points = [Path(os.fsdecode(mount.point)) for mount in mounted() if mount.fstype.startswith("fuse.")]
        return [point for point in points if point.is_relative_to(self.home)]

    def daemons(self) -> list[int]:
        """The processes that have this storage in their command line, other than podman's own."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes()
                if os.fsencode(self.home / "root") in words and b"lowerdir=" in words:
                    found.append(int(process.name))
        return found

    def assert_nothing_left(self) -> None:
        """No union is mounted, and each daemon ends. A lazy umount returns before its daemon has ended."""
        assert self.mounts() == []
        self.await_daemons()

    def await_daemons(self) -> None:
        for pid in self.daemons():
            assert await_end(pid), f"the daemon {pid} has outlived its mount"

    def close(self) -> None:
        """Remove everything, whatever state a failed test has left it in."""
        for point in self.mounts():
            subprocess.run(["umount", "--lazy", point], capture_output=True)
        with contextlib.suppress(AssertionError):
            self.podman("system", "reset", "--force")
        for mount in reversed(mounted()):
            if mount.point.startswith(os.fsencode(self.home) + b"/"):
                subprocess.run(["umount", "--lazy", mount.point], capture_output=True)
