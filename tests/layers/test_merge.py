"""`pyunion flatten` and `squash`: the result shows what the layers showed, to the kernel and to pyunion."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.harness.files import make_opaque, make_whiteout, write
from tests.harness.mounts import KernelMount, Layers, PyunionMount
from tests.harness.snapshot import Snapshot, assert_same, snapshot
from tests.harness.union import Union
from tests.harness.warm import pyunion as command
from tests.layers.changes import change, fill


@pytest.fixture(params=["plain", "metacopy"])
def changed(union: Union, request: pytest.FixtureRequest) -> tuple[Union, Snapshot]:
    """A union after changes of each kind, and what it shows."""
    fill(union)
    write(union.low3 / "hidden/by/whiteout")
    make_whiteout(union.low2 / "hidden")
    write(union.low / "hidden/anew")
    write(union.low3 / "opaque/old")
    make_opaque(union.low2 / "opaque")
    write(union.low / "opaque/new")
    write(union.low3 / "was-dir/x")
    write(union.low2 / "was-dir", "file")
    write(union.low / "was-dir/y")
    union.mount(*(["metacopy=on"] if request.param == "metacopy" else []))
    change(union.at)
    os.link(write(union.at / "one", "1"), union.at / "two")
    seen = snapshot(union.at)
    union.unmount()
    return union, seen


def _run(*arguments: str | Path) -> None:
    done = command(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_flatten(changed: tuple[Union, Snapshot]) -> None:
    union, seen = changed
    lowers = ":".join(map(str, (union.low, union.low2, union.low3)))
    _run("flatten", "--upper", union.top, "--lower", lowers, union.base / "new")
    assert_same(seen, snapshot(union.base / "new"), "the directory holds something else (union | directory)")


@pytest.mark.parametrize("count", [1, 2, 3])
def test_squash(changed: tuple[Union, Snapshot], count: int) -> None:
    """Upper and the first lower branches, over the rest."""
    union, seen = changed
    lowers = [union.low, union.low2, union.low3]
    rest = lowers[count:]
    own = ("--lower", ":".join(map(str, lowers[:count])))
    below = ("--below", ":".join(map(str, rest))) if rest else ()
    _run("squash", "--upper", union.top, *own, *below, union.base / "new")
    (union.base / "empty").mkdir()
    for mount in (KernelMount(union.at), PyunionMount(union.at)):
        mount.start(Layers([union.base / "new", *rest, union.base / "empty"]))
        assert_same(seen, snapshot(union.at), f"the layer shows something else by {mount.kind} (union | layer)")
        mount.stop()
    for path in (union.base / "new").rglob("*"):
        assert {key for key in os.listxattr(path, follow_symlinks=False) if "overlay" in key} <= {
            "trusted.overlay.opaque"
        }


def test_nothing_that_is_there_is_replaced(pyunion: Union) -> None:
    write(pyunion.base / "new/precious")
    done = command("flatten", "--lower", pyunion.low, pyunion.base / "new")
    assert done.returncode == 2
    assert (pyunion.base / "new/precious").exists()
