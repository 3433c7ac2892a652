"""From one boot to the end of the next: what is enabled is there, and everything goes in the right order.

The examples of systemd/ are used as they are.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.harness import leaks
from tests.harness.mounts import REPOSITORY
from tests.service.machine import Entry, Machine
from tests.service.unit import Service

_EXAMPLES = REPOSITORY / "systemd"
_STOPPED = "9d1aaa27d60140bd96365438aad20286"  # systemd's catalogue: a unit was stopped
_BRANCH_UNIT = """
[Mount]
What={device}
Where=/srv/disk
Type=ext4
"""


@pytest.fixture(scope="module")
def disk() -> Iterator[str]:
    """A block device with an empty file system."""
    image = leaks.make_scratch() / "disk"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    device = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=True)
    yield device.stdout.strip()
    subprocess.run(["losetup", "--detach", device.stdout.strip()], check=True)
    leaks.remove_scratch(image.parent)


@pytest.fixture(scope="module")
def machine(_off: Machine, disk: str) -> Machine:
    """Booted for the second time, with the three examples, and with the unit of a disk that nothing starts."""
    for folder in ("site", "base", "upper", "work", "layers/upper", "layers/work", "disk"):
        (_off.srv / folder).mkdir(parents=True)
    (_off.srv / "base/hello").write_text("hello\n")
    etc = _off.root / "etc"
    (etc / "pyunion").mkdir()
    shutil.copy(_EXAMPLES / "merged.toml", etc / "pyunion")
    shutil.copy(_EXAMPLES / "mnt-layers.mount", etc / "systemd/system")
    shutil.copy(_EXAMPLES / "fstab", etc)
    for folder in ("merged", "layers", "image"):
        (_off.root / "mnt" / folder).mkdir()
    (etc / "systemd/system/srv-disk.mount").write_text(_BRANCH_UNIT.format(device=disk))
    bound = f"--bind={disk}"
    _off.boot(bound)
    assert _off.mounts("/mnt/merged") == []
    _off.succeed("systemctl", "enable", "pyunion@merged", "mnt-layers.mount")
    _off.power_off()
    _off.boot(bound)
    return _off


@pytest.fixture
def on_disk(machine: Machine) -> Service:
    """A service whose branches are on the disk; neither of them is mounted."""
    service = Service(machine, "on-disk")
    machine.shell(f"""
        systemctl start srv-disk.mount
        mv /srv/{service.name} /srv/disk/
        systemctl stop srv-disk.mount
    """)
    folder = f"/srv/disk/{service.name}"
    service.say(lower=[f"{folder}/lower"], upper=f"{folder}/upper", work=f"{folder}/work")
    machine.succeed("systemctl", "daemon-reload")
    return service


def _order(entries: list[Entry]) -> list[str]:
    return [str(entry["UNIT"]) for entry in entries if entry.get("MESSAGE_ID") == _STOPPED and "UNIT" in entry]


@pytest.mark.parametrize(
    ("unit", "point"),
    [("pyunion@merged.service", "merged"), ("mnt-layers.mount", "layers"), ("mnt-image.mount", "image")],
)
def test_examples_are_mounted_at_boot_and_stop(machine: Machine, unit: str, point: str) -> None:
    assert machine.show(unit, "ActiveState") == "active"
    assert machine.shell(f"cat /mnt/{point}/hello") == "hello"
    if point != "image":
        machine.succeed("touch", f"/mnt/{point}/new")
    # The log goes to the journal with its fields however it was started.
    said = machine.journal(f"PYUNION_MOUNT=/mnt/{point}")
    assert {entry["_SYSTEMD_UNIT"] for entry in said} == {unit}
    for _ in range(2):
        machine.succeed("systemctl", "stop", unit)
        assert machine.mounts(f"/mnt/{point}") == []
        machine.succeed("systemctl", "start", unit)
        assert machine.mounts(f"/mnt/{point}") == ["fuse.pyunion"]


def test_the_mount_of_a_branch_comes_before_and_goes_after(machine: Machine, on_disk: Service) -> None:
    on_disk.start()
    assert machine.mounts("/srv/disk") == ["ext4"]
    machine.shell(f"echo kept > {on_disk.point}/new")
    machine.succeed("systemctl", "stop", "srv-disk.mount")
    assert machine.mounts("/srv/disk") == machine.mounts(on_disk.point) == []
    assert (on_disk.show("ActiveState"), on_disk.show("Result")) == ("inactive", "success")

    # And at the end of the machine, where everything stops at once.
    on_disk.start()
    assert machine.shell(f"cat {on_disk.point}/new") == "kept"
    start = machine.journal("--lines=1")[-1]["__CURSOR"]
    machine.power_off()
    entries = machine.journal_of_the_dead(start)
    stopped = _order(entries)
    assert {on_disk.unit, "srv-disk.mount", "pyunion@merged.service"} <= set(stopped)
    assert stopped.index(on_disk.unit) < stopped.index("srv-disk.mount")
    said = [str(entry["MESSAGE"]) for entry in entries]
    assert f"SIGTERM: unmounting {on_disk.point}" in said
    ours = [line for line in said if re.search(r"/srv/disk|srv-disk\.mount|/mnt/|mnt-\S*\.mount|pyunion@", line)]
    assert not [line for line in ours if "Failed" in line or "busy" in line], ours

