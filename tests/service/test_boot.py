"""From one boot to the end of the next: what is enabled is there, and everything goes in the right order.

The examples of systemd/ are used as they are.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator

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


# As the example, with a branch on the disk, and a shorter time.
_LAZY_LINE = """\
far /mnt/far fuse.pyunion lowerdir=/srv/disk/far:/srv/base,noauto,x-systemd.automount,x-systemd.idle-timeout=1s,\
x-systemd.requires-mounts-for=/srv/disk/far 0 0
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
    """Booted for the second time, with the examples, and with the unit of a disk that nothing starts."""
    for folder in ("site", "base", "upper", "work", "layers/upper", "layers/work", "disk"):
        (_off.srv / folder).mkdir(parents=True)
    (_off.srv / "base/hello").write_text("hello\n")
    etc = _off.root / "etc"
    (etc / "pyunion").mkdir()
    shutil.copy(_EXAMPLES / "merged.toml", etc / "pyunion")
    shutil.copy(_EXAMPLES / "mnt-layers.mount", etc / "systemd/system")
    shutil.copy(_EXAMPLES / "fstab", etc)
    with (etc / "fstab").open("a") as table:
        table.write(_LAZY_LINE)
    for folder in ("merged", "layers", "image", "lazy", "far"):
        (_off.root / "mnt" / folder).mkdir()
    (etc / "systemd/system/srv-disk.mount").write_text(_BRANCH_UNIT.format(device=disk))
    bound = (f"--bind={disk}", "--bind=/dev/autofs")
    _off.boot(*bound)
    assert _off.mounts("/mnt/merged") == []
    _off.succeed("systemctl", "enable", "pyunion@merged", "mnt-layers.mount")
    _off.power_off()
    _off.boot(*bound)
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


def test_an_automount_is_mounted_when_somebody_looks(machine: Machine) -> None:
    assert machine.show("mnt-lazy.automount", "ActiveState") == "active"
    assert machine.mounts("/mnt/lazy") == ["autofs"]
    assert machine.shell("cat /mnt/lazy/hello") == "hello"
    assert machine.mounts("/mnt/lazy") == ["autofs", "fuse.pyunion"]
    machine.succeed("systemctl", "stop", "mnt-lazy.mount")
    assert machine.mounts("/mnt/lazy") == ["autofs"]
    assert machine.shell("cat /mnt/lazy/hello") == "hello"
    machine.succeed("systemctl", "stop", "mnt-lazy.mount")
    machine.succeed("mount", "/mnt/lazy")  # by hand, and once
    assert machine.mounts("/mnt/lazy") == ["autofs", "fuse.pyunion"]
    machine.succeed("umount", "/mnt/lazy")
    machine.succeed("systemctl", "stop", "mnt-lazy.automount")
    assert machine.mounts("/mnt/lazy") == []


def test_an_automount_is_unmounted_when_nobody_has_looked_for_a_while(machine: Machine) -> None:
    """And what its branch is on comes before it."""
    machine.shell("""
        systemctl start srv-disk.mount
        mkdir /srv/disk/far
        echo far > /srv/disk/far/there
        systemctl stop srv-disk.mount
    """)
    for _ in range(2):
        with machine.awaiting(_is_stopped("mnt-far.mount")):
            assert machine.mounts("/mnt/far") == ["autofs"]
            assert machine.shell("cat /mnt/far/there /mnt/far/hello").split() == ["far", "hello"]
            assert machine.mounts("/srv/disk") == ["ext4"]
        assert machine.mounts("/mnt/far") == ["autofs"]
    # As long as somebody is inside, it stays.
    with machine.awaiting(_is_stopped("mnt-far.mount")):
        machine.shell("cd /mnt/far; sleep 4; test -e there; grep -q '/mnt/far fuse.pyunion' /proc/mounts")
    machine.succeed("systemctl", "stop", "mnt-far.automount")


def _is_stopped(unit: str) -> Callable[[Entry], bool]:
    return lambda entry: entry.get("UNIT") == unit and entry.get("MESSAGE_ID") == _STOPPED


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
    # By SIGTERM, or by systemd's own umount(8) of everything at that moment, which may be first.
    assert f"{on_disk.unit}: Deactivated successfully." in said
    ours = [line for line in said if re.search(r"/srv/disk|srv-disk\.mount|/mnt/|mnt-\S*\.mount|pyunion@", line)]
    assert not [line for line in ours if "Failed" in line or "busy" in line], ours

