"""`pyunion branch` and `pyunion refresh` with a branch that may not answer: it comes and goes as any other one.
While it is silent it can be removed, any other change is refused, and nobody else waits.

The branch is by FUSE, as sshfs would be.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyunion import mountinfo
from pyunion.control.client import Connection
from pyunion.errors import ExitCode, PyunionError
from tests.harness.files import append, make_opaque, make_whiteout, outcome, write
from tests.harness.held import Client, HeldBranch
from tests.harness.mounts import PATIENCE
from tests.harness.union import Union
from tests.operate.conftest import told
from tests.operate.live import change, refresh, refused, walk


@pytest.fixture
def held(scratch: Path, _can_mount: None) -> Iterator[HeldBranch]:
    """To be named before `pyunion`, so that it is unmounted after that."""
    branch = HeldBranch(scratch / "held", scratch / "far")
    source = branch.source
    write(source / "file", "far")
    write(source / "all", "all of far")
    write(source / "dir/far", "far")
    write(source / "dir/all", "dir of far")
    write(source / "only/far", "far")
    make_whiteout(source / "gone")
    (source / "shut").mkdir()
    make_opaque(source / "shut")
    yield branch
    branch.stop()


@pytest.fixture
def far(held: HeldBranch, pyunion: Union) -> Union:
    """A union that it can come to."""
    pyunion.compare_with_kernel = False  # whose answer would be one more client of it
    write(pyunion.low / "all", "all of 1")
    write(pyunion.low / "dir/all", "dir of 1")
    write(pyunion.low / "gone")
    write(pyunion.low / "shut/below")
    pyunion.mount("index=off", lowers=[pyunion.low])  # FUSE has no lasting file handles, which the index needs
    return pyunion


def _states(union: Union) -> dict[str, str]:
    return {branch["path"]: branch["state"] for branch in told("status", union.at)["branches"]}


def _asked(union: Union, do: str, asked: dict[str, object]) -> tuple[int, str] | None:
    """What a request is refused with. The command itself would look at the branch."""
    mount = mountinfo.topmost_at(os.fsencode(union.at))
    assert mount is not None
    with Connection(mount, PATIENCE) as connection:
        try:
            connection.ask(do, **asked)
        except PyunionError as error:
            return error.exit_code, str(error)
    return None


@pytest.mark.parametrize("options", [(), ("passthrough=all",), ("metacopy=on",)], ids=["", "passthrough", "metacopy"])
def test_it_comes_and_goes(held: HeldBranch, far: Union, options: tuple[str, ...]) -> None:
    far.unmount()
    far.mount("index=off", *options, lowers=[far.low])
    walk(far.at)
    for _ in range(2):
        change(far, "add", held.at)
        far.restacked(held.at, far.low)
        assert sorted(os.listdir(far.at)) == ["all", "dir", "file", "only", "shut"]
        assert sorted(os.listdir(far.at / "dir")) == ["all", "far"]
        assert os.listdir(far.at / "shut") == []
        assert (far.at / "all").read_text() == "all of far"
        assert (far.at / "dir/all").read_text() == "dir of far"
        walk(far.at)
        with (far.at / "file").open() as file, (far.at / "only/far").open() as kept:
            assert kept.read() == "far"
            change(far, "remove", held.at)
            far.restacked(far.low)
            walk(far.at)
            assert sorted(os.listdir(far.at)) == ["all", "dir", "gone", "shut"]
            assert os.listdir(far.at / "dir") == ["all"]
            assert (far.at / "gone").exists()
            assert (far.at / "all").read_text() == "all of 1"
            assert file.read() == "far"
            assert os.fstat(file.fileno()).st_size == 3
            assert Path(f"/proc/self/fd/{file.fileno()}").read_text() == "far"
    assert told("status", far.at)["removed"] == []


def test_what_is_shown_again_is_the_same_file(held: HeldBranch, far: Union) -> None:
    change(far, "add", held.at)
    with (far.at / "file").open() as file:
        number = os.fstat(file.fileno()).st_ino
        change(far, "remove", held.at)
        assert not (far.at / "file").exists()
        change(far, "add", held.at)
        far.restacked(held.at, far.low)
        assert (far.at / "file").stat().st_ino == number
        append(far.at / "file", ", changed")
        assert file.read() == "far, changed"
    assert (held.source / "file").read_text() == "far"


def test_refresh(held: HeldBranch, far: Union) -> None:
    change(far, "add", held.at)
    far.restacked(held.at, far.low)
    walk(far.at)
    source = held.source
    with (far.at / "file").open() as replaced:
        append(far.at / "dir/far", ", changed")
        write(source / "replacement", "after it").rename(source / "file")
        (source / "only/far").unlink()
        write(source / "only/new", "after")
        write(source / "dir/new", "after")
        (source / "gone").unlink()
        (source / "all").unlink()
        refresh(far)
        far.restacked(held.at, far.low)
        assert (far.at / "file").read_text() == "after it"
        assert os.listdir(far.at / "only") == ["new"]
        assert sorted(os.listdir(far.at / "dir")) == ["all", "far", "new"]
        assert (far.at / "gone").exists()
        assert (far.at / "all").read_text() == "all of 1"
        assert (far.at / "dir/far").read_text() == "far, changed"
        assert replaced.read() == "far"


@pytest.mark.parametrize("action", ["add", "remove another", "add another", "refresh"])
def test_while_it_is_silent_the_change_is_refused_and_nobody_waits(
    held: HeldBranch, far: Union, action: str
) -> None:
    write(far.low2 / "another")
    if action != "add":
        change(far, "add", held.at)
        walk(far.at)
    if action == "remove another":
        change(far, "add", far.low2)
    before = _states(far)
    (far.at / "mine").mkdir()
    requests: dict[str, tuple[str, dict[str, object]]] = {
        "add": ("branches", {"add": str(held.at), "position": 1}),
        "remove another": ("branches", {"remove": str(far.low2)}),
        "add another": ("branches", {"add": str(far.low2), "position": 1}),
        "refresh": ("refresh", {}),
    }
    held.hold()
    changing = Client(lambda: _asked(far, *requests[action]))
    assert held.await_request()
    for number in range(3):
        assert Client(lambda: write(far.at / f"mine/{number}", "new").read_text()).await_result() == "new"  # noqa: B023
    code, sentence = changing.await_result()
    assert code == ExitCode.BRANCH
    assert sentence in (f"{held.at} has not answered for 10 s", "a branch has not answered for 10 s")
    held.go()
    assert _states(far) == before
    assert _asked(far, *requests[action]) is None
    walk(far.at)
    assert (far.at / "file").read_text() == "far"


def test_a_silent_one_can_be_removed(held: HeldBranch, far: Union) -> None:
    """Who waits for it hears that it fails, and who has something of it open goes on when it answers."""
    change(far, "add", held.at)
    far.daemon.expect_complaints = True
    at = far.at
    with (at / "file").open() as file:
        held.hold()
        waiting = [Client(lambda: os.listdir(at / "dir"))]
        assert held.await_request()
        waiting.append(Client(lambda: (at / "all").read_text()))
        waiting.append(Client(lambda: write(at / "shut/new", "new").read_text()))
        change(far, "remove", held.at)
        far.restacked(far.low)
        results = [client.await_result() for client in waiting]
        assert results[0] == "EIO"
        assert results[1] in ("EIO", "all of 1")  # by whether it has come to ask
        assert results[2] in ("EIO", "new")
        assert sorted(os.listdir(at)) == ["all", "dir", "gone", "shut"]
        assert (at / "all").read_text() == "all of 1"
        assert os.listdir(at / "dir") == ["all"]
        assert "below" in os.listdir(at / "shut")
        append(at / "dir/all", ", changed")
        assert [branch["path"] for branch in told("status", at)["branches"]] == [str(far.top), str(far.low)]
        held.go()
        assert file.read() == "far"
    assert (held.source / "file").read_text() == "far"


def test_a_copy_of_a_silent_one_keeps_it(held: HeldBranch, far: Union) -> None:
    """Of a metadata-only copy nobody can say whose data would be shown."""
    far.unmount()
    far.mount("index=off", "metacopy=on", lowers=[held.at, far.low])
    (far.at / "dir/all").chmod(0o600)
    held.hold()
    code, sentence = refused(far, "remove", held.at)
    held.go()
    assert (code, sentence.split(" was")[0]) == (ExitCode.BUSY, f"{far.at}/dir/all")
    append(far.at / "dir/all", ", changed")
    change(far, "remove", held.at)
    far.restacked(far.low)
    assert (far.at / "dir/all").read_text() == "dir of far, changed"


@pytest.mark.parametrize("action", ["add", "remove"])
def test_another_name_of_a_silent_one_is_refused(held: HeldBranch, far: Union, action: str) -> None:
    """By a command that ends, though whoever asks does not."""
    if action == "remove":
        change(far, "add", held.at)
    name = far.base / "name"
    name.symlink_to(held.at)
    held.hold()
    code, sentence = refused(far, action, name)
    held.go()
    assert (code, sentence) == (
        ExitCode.BRANCH,
        f"{name} has not answered for 10 s; to remove it, name it as `pyunion status` does",
    )
    change(far, action, name)
    far.restacked(*([held.at] if action == "add" else []), far.low)


def test_a_dead_one_can_be_removed(held: HeldBranch, far: Union) -> None:
    far.daemon.expect_complaints = True
    change(far, "add", held.at)
    walk(far.at)
    held.die()
    assert outcome((far.at / "file").read_text) in ("ENOTCONN", "ECONNABORTED")
    change(far, "remove", held.at)
    far.restacked(far.low)
    assert sorted(os.listdir(far.at)) == ["all", "dir", "gone", "shut"]
    assert (far.at / "all").read_text() == "all of 1"
    assert (far.at / "gone").exists()
    assert os.listdir(far.at / "shut") == ["below"]
