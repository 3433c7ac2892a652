"""Containers whose root is a pyunion mount: what they see, what is kept of them, and that nothing stays behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from pyunion import __version__
from tests.harness.mounts import PATIENCE
from tests.podman.store import PROGRAMS, Store


def test_a_container_runs_and_is_gone(store: Store) -> None:
    seen = store.shell("cat /etc/motd; rm /etc/motd; ls /etc", "--rm")
    assert seen.splitlines()[0] == "etc/motd of base"
    assert "motd" not in seen.splitlines()[1:]
    assert store.shell("cat /etc/motd", "--rm") == "etc/motd of base"


def test_a_stopped_container_goes_on_with_its_files(store: Store) -> None:
    store.shell("echo kept >> /kept; rm -rf /old; cat /kept", "--name", "one")
    store.assert_nothing_left()
    store.podman("commit", "--quiet", "one", "kept")
    assert store.shell("cat /kept; ls -d /old || true", "--rm", image="kept") == "kept"
    assert store.podman("start", "--attach", "one") == "kept\nkept"


def test_links_of_an_image_stay_one_file(store: Store) -> None:
    store.shell("echo more >> /data/one", "--name", "one")
    store.podman("commit", "--quiet", "one", "linked")
    script = "cat /data/link; stat -c %h /data/one"
    assert store.shell(script, "--rm", image="linked") == "data/one of base\nmore\n2"


def test_a_mounted_image_is_read_only(store: Store) -> None:
    at = Path(store.podman("image", "mount", "base"))
    assert (at / "etc/motd").read_text() == "etc/motd of base\n"
    with pytest.raises(OSError, match="Read-only file system"):
        (at / "new").touch()
    store.podman("image", "umount", "base")


def test_a_mounted_container_is_written_from_outside(store: Store) -> None:
    store.podman("create", "--name", "one", "base", "cat", "/from-outside")
    at = Path(store.podman("mount", "one"))
    (at / "from-outside").write_text("hello\n")
    store.podman("umount", "one")
    store.assert_nothing_left()
    assert store.podman("start", "--attach", "one") == "hello"


def test_containers_at_the_same_time(store: Store) -> None:
    script = "for i in $(seq 50); do echo $1 > /data/$i; mv /data/$i /tmp/$i; done; echo $1 >> /etc/motd; cat /etc/motd"
    running = [
        store.start("podman", "run", "--rm", "base", "sh", "-ec", script, "sh", f"container {number}")
        for number in range(4)
    ]
    for number, process in enumerate(running):
        out, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, err
        assert out == f"etc/motd of base\ncontainer {number}\n"


def test_a_directory_as_overlay_volume(store: Store) -> None:
    outside = store.home / "outside"
    outside.mkdir()
    (outside / "file").write_text("outside\n")
    assert store.shell("cat /in/file; echo changed > /in/file", "--rm", f"--volume={outside}:/in:O") == "outside"
    assert (outside / "file").read_text() == "outside\n"


def test_a_user_namespace(store: Store) -> None:
    """The container's root is user 100000 outside, and owns what is the image's root's."""
    shifted = ("--uidmap=0:100000:2000", "--gidmap=0:100000:2000")
    seen = store.shell("touch /new; stat -c %u:%g /new /etc/motd /bin/busybox", "--name=one", *shifted)
    assert seen.split() == ["0:0"] * 3


def test_buildah(store: Store) -> None:
    container = store.buildah("from", "--pull-never", "localhost/base")
    store.buildah("run", "--isolation", "chroot", container, "sh", "-ec", "echo built > /built; rm /etc/motd")
    at = Path(store.buildah("mount", container))
    assert (at / "built").read_text() == "built\n"
    (at / "outside").write_text("outside\n")
    store.buildah("umount", container)
    store.buildah("commit", "--quiet", container, "by-buildah")
    store.buildah("rm", container)
    store.assert_nothing_left()
    assert store.shell("cat /built /outside", "--rm", image="by-buildah") == "built\noutside"
    assert {"built", "outside", "etc/.wh.motd"} <= store.layers("by-buildah")[-1].keys()


def test_podman_learns_the_version(store: Store) -> None:
    options = json.loads(store.podman("info", "--format", "json"))["store"]["graphOptions"]
    assert options["overlay.mount_program"]["Version"] == f"pyunion {__version__}"


def test_podman_passes_on_what_is_wrong(store: Store) -> None:
    store.set_mount_options("xattr_permissions=2")
    with pytest.raises(AssertionError, match="pyunion: the option xattr_permissions of fuse-overlayfs cannot be had"):
        store.shell("true", "--rm")


def test_options_for_fuse_overlayfs_are_understood(store: Store) -> None:
    store.set_mount_options("nodev,fsync=0,fast_ino=1,threaded=1,clone_fd,max_threads=4,timeout=1,static_nlink,noxattrs=0")
    assert store.shell("cat /etc/motd", "--rm") == "etc/motd of base"


def test_podman_within_a_service_returns(store: Store) -> None:
    """The service manager's readiness is podman's affair, and not that of its mounts."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(store.home / "notify"))
        at = Path(store.podman("image", "mount", "base", NOTIFY_SOCKET=str(store.home / "notify")))
        assert (at / "etc/motd").exists()
        store.podman("image", "umount", "base")
        store.assert_nothing_left()
        with pytest.raises(BlockingIOError):
            manager.recv(4096, socket.MSG_DONTWAIT)


def test_a_killed_daemon_is_cleared_away(store: Store) -> None:
    store.podman("create", "--name", "one", "base", "true")
    at = store.podman("mount", "one")
    (daemon,) = store.daemons()
    os.kill(daemon, signal.SIGKILL)
    store.await_daemons()
    assert subprocess.run(["ls", at], capture_output=True).returncode
    store.podman("rm", "--force", "one")


def test_crun_runs_it_as_well(scratch: Path) -> None:
    store = Store(scratch / "store", PROGRAMS["pyunion"], "crun")
    try:
        store.base()
        assert store.shell("cat /etc/motd; rm /etc/motd; ls -d /etc/motd || echo gone", "--name=one").splitlines() == [
            *("etc/motd of base", "gone"),
        ]
        assert store.podman("inspect", "--format", "{{.OCIRuntime}}", "one") == "crun"
        assert "D /etc/motd" in store.podman("diff", "one").splitlines()
        store.podman("rm", "one")
        store.assert_nothing_left()
    finally:
        store.close()
