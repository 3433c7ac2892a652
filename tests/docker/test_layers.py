"""What `pyunion mount --docker-layer` shows is what Docker itself says is in the container or image."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pyunion.errors import ExitCode
from tests.docker.conftest import Viewer
from tests.docker.engine import Engine
from tests.harness.archives import Member, members
from tests.harness.files import outcome, run, tree
from tests.harness.snapshot import assert_same, snapshot
from tests.harness.warm import pyunion

# A container's life: every kind of change that a layer can carry.
_CHANGES = """
echo more >> /etc/passwd
chmod 600 /data/deep/two
chown 12:34 /data/deep/er/three
rm /etc/motd
rm -r /old
mkdir /old && echo new > /old/other
mkdir -p /new/a/b && echo x > /new/a/b/c
ln /new/a/b/c /new/hard
ln -s /nowhere /new/soft
mkfifo /new/pipe
mknod /new/null c 1 3
cp /data/suid /new/suid && chmod 6755 /new/suid
rm /data/owned && mkdir /data/owned
echo more >> /data/one
mv /data/null /new/moved
touch -d '2001-02-03 04:05:06' /data/deep
dd if=/dev/zero of=/new/sparse bs=1 seek=5M count=1 2>/dev/null
dd if=/dev/urandom of=/new/big bs=1M count=3 2>/dev/null
"""
# On top of these in a second container, whose image has them.
_MORE = """
rm -r /new/a /old/other
echo again > /etc/motd
mkdir /data/more
chmod 711 /old
"""


class Object(NamedTuple):
    """What one name of an archive stands for, whichever name of it the archive has the contents under."""

    member: Member
    names: frozenset[str]
    mtime: int


@pytest.fixture(scope="module")
def changed(engine: Engine) -> Engine:
    """With the containers `first` on `base`, and `second` on the image `committed`, which has the layer of `first`."""
    engine.run("first", _CHANGES)
    engine.docker("commit", "first", "committed")
    engine.run("second", _MORE, image="committed")
    engine.docker("commit", "second", "again")
    return engine


def objects(archive: Path) -> dict[str, Object]:
    return dict(_objects(archive))


def _objects(archive: Path) -> Iterator[tuple[str, Object]]:
    found = {os.path.normpath(name): member for name, member in members(archive).items()}
    found.pop(".", None)
    with tarfile.open(archive) as file:
        mtimes = {os.path.normpath(entry.name): int(entry.mtime) for entry in file}
    first = {
        name: os.path.normpath(member.link) if member.kind == tarfile.LNKTYPE else name
        for name, member in found.items()
    }
    for name in found:
        names = frozenset(other for other in found if first[other] == first[name])
        yield name, Object(found[first[name]], names, mtimes[first[name]])


def seen(viewer: Viewer, below: str = ".") -> dict[str, Object]:
    """What is mounted, by tar(1)."""
    archive = viewer.at.with_name("seen.tar")
    run("tar", "--format=posix", "--numeric-owner", "-C", viewer.at / below, "-cf", archive, ".")
    return objects(archive)


def exported(engine: Engine, container: str, scratch: Path) -> dict[str, Object]:
    archive = scratch / "exported.tar"
    engine.docker("export", "--output", archive, container)
    return objects(archive)


def differing(left: dict[str, Object], right: dict[str, Object]) -> dict[str, tuple[Object | None, Object | None]]:
    both = {name: (left.get(name), right.get(name)) for name in left.keys() | right.keys()}
    return {name: pair for name, pair in both.items() if pair[0] != pair[1]}


@pytest.mark.parametrize("container", ["first", "second"])
def test_a_containers_layer_shows_what_docker_exports(
    changed: Engine, viewer: Viewer, scratch: Path, container: str
) -> None:
    viewer.mount(changed.layer("container", container))
    assert differing(seen(viewer), exported(changed, container, scratch)) == {}
    assert outcome(os.mkdir, viewer.at / "d") == "EROFS"
    viewer.umount()


def test_a_folder_shows_what_docker_copies(changed: Engine, viewer: Viewer, scratch: Path) -> None:
    viewer.mount(changed.layer("container", "second"))
    for folder in ("data", "new"):
        changed.docker("cp", f"second:/{folder}", scratch / folder)
        run("tar", "--format=posix", "-C", scratch / folder, "-cf", scratch / "copied.tar", ".")
        copied = {name: made.member.content for name, made in objects(scratch / "copied.tar").items()}
        assert {name: made.member.content for name, made in seen(viewer, folder).items()} == copied
    viewer.umount()


@pytest.mark.parametrize("image", ["base", "committed", "again"])
def test_an_images_layer_shows_what_a_new_container_has(
    changed: Engine, viewer: Viewer, scratch: Path, image: str
) -> None:
    """All but what Docker itself adds to each container, in the layer ID-init."""
    name = f"of-{image}"
    changed.docker("create", "--name", name, image, "true")
    of_docker = {name.rstrip("/") for name in tree(changed.lowers(name)[0])}
    viewer.mount(changed.layer("image", image))
    different = differing(seen(viewer), exported(changed, name, scratch))
    assert set(different) - of_docker == set()
    assert ".dockerenv" in different
    viewer.umount()


def test_the_init_layer_is_one_of_the_lowers(changed: Engine, viewer: Viewer) -> None:
    layer = changed.layer("container", "first")
    init = layer.with_name(layer.name + "-init")
    assert changed.lowers("first")[0] == init / "diff"
    viewer.mount(layer)
    assert (viewer.at / ".dockerenv").exists()
    viewer.umount()
    viewer.mount(init)
    assert (viewer.at / ".dockerenv").exists()
    assert (viewer.at / "etc/motd").read_text() == "etc/motd of base\n"
    viewer.umount()


def test_the_layer_of_a_running_container(engine: Engine, viewer: Viewer) -> None:
    """Kept mounted by the kernel, it can be read; and the container neither notices nor is changed."""
    engine.run("running", "echo early > /early; rm -r /old; exec sleep 1000", "--detach")
    engine.docker("exec", "running", "sh", "-c", "until [ ! -e /old ]; do :; done")
    layer = engine.layer("container", "running")
    before = snapshot(layer)
    viewer.mount(layer)
    assert (viewer.at / "early").read_text() == "early\n"
    assert not (viewer.at / "old").exists()
    assert_same(before, snapshot(layer), "the layer was changed (before | after)")
    engine.docker("exec", "running", "sh", "-c", "echo late > /late && mv /data /moved")
    viewer.umount()
    viewer.mount(layer)
    assert (viewer.at / "late").read_text() == "late\n"
    assert (viewer.at / "moved/deep/two").read_text() == "data/deep/two of base\n"
    viewer.umount()
    engine.docker("rm", "--force", "running")


def test_its_diff_is_no_upper(changed: Engine, viewer: Viewer) -> None:
    layer = changed.layer("container", "first")
    upper = ("--upper", layer / "diff", "--work", layer / "work")
    done = pyunion("mount", "--docker-layer", layer, *upper, viewer.at)
    assert (done.returncode, done.stdout) == (ExitCode.BRANCH, "")
    assert "is the lower branch" in done.stderr


@pytest.mark.parametrize("way", ["switches", "options"])
def test_with_an_upper_of_its_own(changed: Engine, viewer: Viewer, scratch: Path, way: str) -> None:
    layer = changed.layer("container", "second")
    before = snapshot(layer.parent)  # with the layers below it
    upper, work = scratch / "upper", scratch / "work"
    for path in (upper, work):
        path.mkdir()
    if way == "switches":
        viewer.mount(layer, "--upper", upper, "--work", work, "--metacopy", "on")
    else:
        viewer.mount(layer, "-o", f"upperdir={upper},workdir={work},metacopy=on,fsname=second")
        assert run("findmnt", "--noheadings", "--output", "SOURCE", viewer.at).strip() == "second"
    subprocess.run(["chroot", viewer.at, "/bin/sh", "-ec", "echo here >> /etc/motd; rm -r /data/deep"], check=True)
    (viewer.at / "etc/passwd").chmod(0o600)
    viewer.umount()
    assert_same(before, snapshot(layer.parent), "the layers were changed (before | after)")
    assert (upper / "etc/motd").read_text() == "again\nhere\n"
    assert os.getxattr(upper / "etc/passwd", "trusted.overlay.metacopy") is not None
    viewer.mount(layer)
    assert (viewer.at / "etc/motd").read_text() == "again\n"
    viewer.umount()
