"""An ordinary user's podman makes the same of everything with pyunion as with fuse-overlayfs, where that is right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness import leaks
from tests.harness.archives import Member
from tests.layers.docker import write_base  # without devices, which a user cannot make
from tests.podman.rootless import UID, Rootless
from tests.podman.store import PROGRAMS

_CHANGES = """
echo more >> /etc/motd; chmod 600 /d/a; chown 12:34 /d/sub/b; rm /same; rm -r /old
rm -r /replaced; mkdir /replaced; echo n > /replaced/n; mv /kept/sub/k /kept/kk
mkdir -p /new/a; echo b > /new/a/b; ln /new/a/b /new/hard; ln -s nowhere /new/soft; mkfifo /new/pipe
"""
_LOOK = """
cd $at
find . -type d -exec stat -c '%n %a %u:%g' {} + | sort
find . ! -type d -exec stat -c '%n %F %a %u:%g %s %h' {} + | sort
cat etc/motd new/a/b
"""


class Made(NamedTuple):
    """What podman made of the same orders."""

    diff: list[str]
    layers: list[dict[str, Member]]
    tree: str
    ran: str
    outside: int
    told: str


def _make(store: Rootless) -> Made:
    write_base(store.home / "base.tar")
    store.podman("import", "--quiet", store.home / "base.tar", "base")
    store.shell(_CHANGES, "--name", "changed")
    diff = sorted(store.podman("diff", "changed").splitlines())
    store.podman("commit", "--quiet", "changed", "committed")
    tree = store.unshare(f"at=$(podman image mount committed)\n{_LOOK}\ncd /; podman image umount committed >/dev/null")
    store.podman("create", "--name", "mounted", "base", "cat", "/made")
    store.unshare("at=$(podman mount mounted); echo made > $at/made; podman umount mounted >/dev/null")
    ran = store.podman("start", "--attach", "mounted")
    (made,) = (store.home / ".local/share/containers/storage/overlay").glob("*/diff/made")
    told = json.loads(store.podman("info", "--format", "json"))["store"]["graphOptions"]["overlay.mount_program"]
    found = Made(diff, store.layers("committed"), tree, ran, made.stat().st_uid, told["Executable"])
    store.podman("rm", "changed", "mounted")
    store.await_daemons()
    return found


@pytest.fixture(scope="module")
def made(_can_mount: None) -> dict[str, Made]:
    """The same sequence on both mount programs."""
    found = {}
    for name, program in PROGRAMS.items():
        scratch = leaks.make_scratch()
        scratch.chmod(0o755)
        store = Rootless(scratch / "store", program)
        try:
            found[name] = _make(store)
        finally:
            store.close()
            leaks.remove_scratch(scratch)
    return found


def test_a_user_has_the_same_of_both(made: dict[str, Made]) -> None:
    ours, theirs = made["pyunion"], made["fuse-overlayfs"]
    assert ours.told != theirs.told
    assert {"D /same", "C /etc/motd", "A /new/a/b", "A /kept/kk", "D /kept/sub/k", "D /replaced/r"} <= set(ours.diff)
    # fuse-overlayfs 1.10 loses what a directory made anew hides: its image shows replaced/r again
    assert set(ours.diff) - set(theirs.diff) <= {"D /replaced/r"}
    assert set(theirs.diff) <= set(ours.diff)
    pairs = list(zip(ours.layers, theirs.layers, strict=True))
    differing = {path for one, two in pairs for path in one.keys() | two.keys() if one.get(path) != two.get(path)}
    assert differing <= {"replaced/.wh.r"}
    assert "replaced/.wh.r" in ours.layers[-1]
    shown = [line for line in theirs.tree.splitlines() if not line.startswith("./replaced/r ")]
    assert ours.tree.splitlines() == shown
    assert ours.ran == "made"
    assert ours.outside == theirs.outside == UID


@pytest.mark.parametrize("runtime", ["runc", "crun"])
def test_a_container_runs_by(scratch: Path, runtime: str) -> None:
    scratch.chmod(0o755)
    store = Rootless(scratch / "store", PROGRAMS["pyunion"], runtime)
    try:
        write_base(store.home / "base.tar")
        store.podman("import", "--quiet", store.home / "base.tar", "base")
        script = "id -u; rm -r /old; echo more >> /etc/motd; cat /etc/motd; ls -d /old || echo gone"
        assert store.shell(script, "--name", "one").splitlines() == ["0", "hello", "more", "gone"]
        assert store.podman("inspect", "--format", "{{.OCIRuntime}}", "one") == runtime
        store.podman("rm", "one")
        store.await_daemons()
    finally:
        store.close()
