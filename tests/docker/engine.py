"""A Docker of its own: dockerd with its data on an XFS of its own, reached by a socket of its own.

Knows Docker by its command lines, and nothing of pyunion. There is no network, and nothing of the machine's own
containers is touched.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from tests.harness.archives import write_base
from tests.harness.mounts import PATIENCE, mounted
from tests.harness.ready import readable

# The client of the distribution goes with its daemon; another one may no longer speak to it.
_PATH = "/usr/bin:/usr/sbin:/bin:/sbin"


class Engine:
    """A running dockerd, with the image `base`."""

    def __init__(self, home: Path, data: Path) -> None:
        """`data` is an empty directory on a file system that overlay2 can use; all else is in `home`."""
        self.home = home
        self.data = data
        self._environment = {
            "DOCKER_CONFIG": str(home / "config"),
            "DOCKER_HOST": f"unix://{home}/socket",
            "HOME": str(home),
            "LC_ALL": "C",
            "PATH": _PATH,
        }
        self._log = home / "dockerd.log"
        self._daemon = self._start()
        archive = home / "base.tar"
        write_base(archive)
        self.docker("import", archive, "base")

    def _start(self) -> subprocess.Popen[bytes]:
        """dockerd tells the service manager when it answers: here that is us."""
        command = ["dockerd", "--storage-driver=overlay2", "--iptables=false", "--bridge=none"]
        command += [f"--data-root={self.data}", f"--exec-root={self.home}/exec", f"--pidfile={self.home}/pid"]
        command += ["--host", self._environment["DOCKER_HOST"]]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, self._log.open("wb") as log:
            manager.bind(str(self.home / "notify"))
            daemon = subprocess.Popen(
                command,
                env={**self._environment, "NOTIFY_SOCKET": str(self.home / "notify")},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            death = os.pidfd_open(daemon.pid)
            try:
                ready = readable(manager.fileno(), death, seconds=PATIENCE)
            finally:
                os.close(death)
            if manager.fileno() not in ready or b"READY=1" not in manager.recv(4096):
                daemon.kill()
                daemon.wait()
                raise AssertionError(f"dockerd does not start:\n{self._log.read_text()}")
        return daemon

    def docker(self, *arguments: str | Path) -> str:
        """Run docker; returns what it prints."""
        docker = shutil.which("docker", path=_PATH)
        assert docker is not None
        done = subprocess.run(
            [docker, *map(str, arguments)],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"docker {' '.join(map(str, arguments))}: {done.stderr}"
        return done.stdout.strip()

    def run(self, name: str, script: str, *options: str, image: str = "base") -> str:
        """Run a shell script in a new container, which stays when it has ended."""
        return self.docker("run", "--name", name, "--network=none", *options, image, "sh", "-ec", script)

    def layer(self, kind: str, name: str) -> Path:
        """The folder of the layer of a container or an image."""
        return Path(self.docker(kind, "inspect", "--format", "{{.GraphDriver.Data.UpperDir}}", name)).parent

    def lowers(self, name: str) -> list[Path]:
        """What Docker says is below a container's layer, topmost first."""
        said = self.docker("container", "inspect", "--format", "{{.GraphDriver.Data.LowerDir}}", name)
        return list(map(Path, said.split(":")))

    def stop(self) -> None:
        """SIGTERM, which ends the containers too, and takes its mounts down."""
        self._daemon.send_signal(signal.SIGTERM)
        try:
            self._daemon.wait(PATIENCE)
        finally:
            self._daemon.kill()
            for mount in reversed(mounted()):
                # The network namespace of a container that was running, and what a failed dockerd has left.
                if mount.point.startswith((os.fsencode(self.home) + b"/exec/", os.fsencode(self.data) + b"/")):
                    with contextlib.suppress(FileNotFoundError):
                        subprocess.run(["umount", "--lazy", mount.point], check=True)
