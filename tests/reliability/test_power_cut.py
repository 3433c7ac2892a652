"""The power goes: what was synced is there afterwards, and whatever else is there is whole.

scripts/reliability cuts it at each system call of each operation; here it is cut at a few.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import leaks
from tests.harness.files import run, write
from tests.harness.filesystems import cut_power
from tests.harness.mounts import KernelMount, PyunionMount
from trials import power
from trials.operations import OPERATIONS, Operation
from trials.power import Machine


@pytest.fixture(scope="module", params=power.KINDS)
def machine(request: pytest.FixtureRequest, _can_mount: None) -> Iterator[Machine]:
    path = leaks.make_scratch()
    run("mount", "-t", "tmpfs", "tmpfs", path)
    try:
        with power.machine(request.param, path) as made:
            yield made
    finally:
        run("umount", "--lazy", path)  # another mount namespace may hold the disk, and that its image
        leaks.remove_scratch(path)


def mount_of(kind: str, machine: Machine) -> KernelMount | PyunionMount:
    return machine.home.kernel() if kind == "kernel" else machine.home.pyunion()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_what_was_synced_survives_a_power_cut_and_the_rest_is_old_or_new(
    machine: Machine, operation: Operation
) -> None:
    tries = list(power.walk(machine, operation, most=1))
    assert len(tries) > 2
    assert [one for one in tries if one.lost] == []


@pytest.mark.parametrize("kind", ["pyunion", "kernel"])
@pytest.mark.parametrize("synced", ["d/sub/b", "d/sub"])
def test_a_copy_is_on_disk_when_it_or_its_directory_was_synced(machine: Machine, kind: str, synced: str) -> None:
    whole = (machine.home.lowers[0] / "d/sub/b").read_bytes()
    with machine.mounted(mount_of(kind, machine)) as at:
        (at / "d/sub/b").chmod(0o600)
        power.fsync(at / synced)
        cut_power(machine.disk, journal_written=False)
    copy = machine.home.upper / "d/sub/b"
    assert (copy.read_bytes(), copy.stat().st_mode) == (whole, 0o100600)


@pytest.mark.parametrize(("option", "kept"), [("sync", "gf"), ("rw", "g"), ("volatile", "")])
def test_sync_waits_for_the_disk_with_each_write_and_volatile_never(machine: Machine, option: str, kept: str) -> None:
    """`g` is written and synced, and then `f` only written."""

    def overwrite(path: Path, synced: bool) -> None:
        with path.open("r+b") as file:
            file.write(b"more")
            file.flush()
            if synced:
                os.fsync(file.fileno())

    with machine.mounted(machine.home.pyunion(), [option]) as at:
        overwrite(at / "g", True)
        overwrite(at / "f", False)
        cut_power(machine.disk, journal_written=False)
    copies = {name: machine.home.upper / name for name in "gf"}
    assert [name for name, path in copies.items() if path.exists() and path.read_bytes()[:4] == b"more"] == list(kept)


@pytest.mark.parametrize("kind", ["pyunion", "kernel"])
def test_syncfs_reaches_the_disk(machine: Machine, kind: str, request: pytest.FixtureRequest) -> None:
    if kind == "pyunion":
        request.applymarker(pytest.mark.xfail(strict=True, reason="FUSE does not pass syncfs(2) on"))
    with machine.mounted(mount_of(kind, machine)) as at:
        write(at / "new", "new")
        run("sync", "-f", at)
        cut_power(machine.disk, journal_written=False)
    assert (machine.home.upper / "new").exists()
    assert (machine.home.upper / "new").read_text() == "new"


@pytest.mark.xfail(strict=True, reason="neither overlayfs nor FUSE makes a change of names wait")
@pytest.mark.parametrize("kind", ["pyunion", "kernel"])
def test_dirsync_reaches_the_disk(machine: Machine, kind: str) -> None:
    with machine.mounted(mount_of(kind, machine), ["dirsync"]) as at:
        (at / "new").mkdir()
        cut_power(machine.disk, journal_written=False)
    assert (machine.home.upper / "new").is_dir()
