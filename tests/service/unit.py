"""One instance of the service, with its file and its branches.

Knows how an administrator works with a unit, and leaves what shall be true of it to the tests.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from subprocess import CompletedProcess

from tests.service.machine import Entry, Machine


class Service:
    """pyunion@NAME with the branches /srv/NAME/lower (a file hello), upper and work on /mnt/NAME."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.name = machine, name
        self.unit = f"pyunion@{name}.service"
        self.point = f"/mnt/{name}"
        self.branches = machine.srv / name
        for folder in ("lower", "upper", "work"):
            (self.branches / folder).mkdir(parents=True)
        (self.branches / "lower/hello").write_text("hello\n")
        machine.succeed("mkdir", "-p", self.point, "/etc/pyunion")
        self._drop_in = f"/etc/systemd/system/{self.unit}.d"
        self._said: dict[str, object] = {
            "lower": [f"/srv/{name}/lower"],
            "upper": f"/srv/{name}/upper",
            "work": f"/srv/{name}/work",
            "mountpoint": self.point,
        }
        self.say()

    @property
    def file(self) -> Path:
        """The TOML file, as this side sees it; what is written there shows on the machine."""
        return Path(f"/proc/{self.machine.leader}/root/etc/pyunion/{self.name}.toml")

    def say(self, **keys: object) -> None:
        """Write the file, with other values for some keys, or without those that are None."""
        said = self._said | {key.replace("_", "-"): value for key, value in keys.items()}
        lines = [f"{key} = {json.dumps(value)}\n" for key, value in said.items() if value is not None]
        self.file.write_text("".join(lines))

    def tune(self, **settings: str) -> None:
        """A drop-in, as `systemctl edit` makes them."""
        text = "\n".join(["[Service]", *(f"{key}={value}" for key, value in settings.items())])
        self.machine.shell(f"mkdir -p {self._drop_in}; echo '{text}' > {self._drop_in}/tune.conf")
        self.machine.succeed("systemctl", "daemon-reload")

    def control(self, verb: str) -> CompletedProcess[str]:
        return self.machine.run("systemctl", verb, self.unit)

    def start(self) -> None:
        self.machine.succeed("systemctl", "start", self.unit)

    def stop(self) -> None:
        """Stop it, which has to go well."""
        self.machine.succeed("systemctl", "stop", self.unit)
        assert (self.show("ActiveState"), self.show("Result")) == ("inactive", "success"), self.status()

    def status(self) -> str:
        return self.machine.run("systemctl", "status", "--full", self.unit).stdout

    def show(self, name: str) -> str:
        return self.machine.show(self.unit, name)

    def pid(self) -> int:
        return self.machine.main_pid(self.unit)

    def entries(self) -> list[Entry]:
        """What the daemon has logged."""
        return self.machine.journal(f"PYUNION_MOUNT={self.point}")

    def seen_from_here(self, name: str) -> Path:
        """A file in the union, for this side; who opens it keeps the mount busy."""
        return Path(f"/proc/{self.machine.leader}/root{self.point}") / name

    def end(self) -> None:
        self.machine.run("systemctl", "stop", self.unit)
        left = self.machine.mounts(self.point)
        self.machine.run("umount", "--lazy", self.point)
        self.machine.run("systemctl", "reset-failed", self.unit)
        self.machine.shell(f"rm -rf {self._drop_in} /etc/pyunion/{self.name}.toml")
        shutil.rmtree(self.branches)
        assert left == []
