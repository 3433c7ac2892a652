"""An ordinary user's podman, with ids of his own from /etc/subuid, and a mount program that he runs himself.

The machine's users and its /dev/fuse stay as they are: what the user needs is put over them in a mount namespace.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.harness.files import write
from tests.harness.mounts import PATIENCE
from tests.harness.program import copy_program
from tests.podman.store import Store

UID = 1000
_USER = f"rootless:x:{UID}:{UID}::{{home}}:/bin/sh\n"
_ENTER = """
mount --make-rshared /
for name in passwd group subuid subgid; do mount --bind {machine}/$name /etc/$name; done
mount --bind {machine}/fuse /dev/fuse
exec setpriv --reuid {uid} --regid {uid} --clear-groups "$@"
"""


class Rootless(Store):
    """podman of a user that only its own mount namespace knows."""

    def __init__(self, home: Path, program: Path, runtime: str = "runc") -> None:
        super().__init__(home, self._for_everybody(home, program), runtime)
        machine = home.with_name(f"{home.name}-machine")
        for name, line in (("passwd", _USER.format(home=home)), ("group", f"rootless:x:{UID}:\n")):
            write(machine / name, line + Path("/etc", name).read_text())  # the first of an id counts
        for name in ("subuid", "subgid"):
            write(machine / name, "rootless:400000:65536\n")
        os.mknod(machine / "fuse", 0o020666, Path("/dev/fuse").stat().st_rdev)
        (machine / "fuse").chmod(0o666)
        for name in ("run", ".config", ".config/containers"):
            (home / name).mkdir()
        (home / "policy.json").rename(home / ".config/containers/policy.json")
        self._environment["XDG_RUNTIME_DIR"] = str(home / "run")
        subprocess.run(["chown", "-R", f"{UID}:{UID}", home], check=True)
        enter = _ENTER.format(machine=machine, uid=UID)
        self.within = ["unshare", "--mount", "sh", "-ec", enter, "sh"] if not self.within else [
            *self.within, "sh", "-ec", enter, "sh",
        ]  # fmt: skip

    @staticmethod
    def _for_everybody(home: Path, program: Path) -> Path:
        """The checkout may lie where only root may read."""
        if program.name != "pyunion":
            return program
        copy = home.with_name(f"{home.name}-program")
        command = copy_program(copy)
        return write(copy / "mount", f'#!/bin/sh\nPYTHONPATH={copy} exec {command} mount --helper "$@"\n', 0o755)

    def unshare(self, script: str) -> str:
        """Run a shell script in the namespaces of the user's containers, as their root."""
        return self.podman("unshare", "sh", "-ec", script)

    def close(self) -> None:
        """With the process that keeps the user's namespaces."""
        process = self.start("podman", "system", "migrate")
        process.communicate(timeout=PATIENCE)
        super().close()
