"""A lower branch that does not answer, for a while or ever again: whoever needs it waits, and nobody else.

The branch is by FUSE, as sshfs would be, and answers nothing while it is told to hold.
"""

from __future__ import annotations

import os

import pytest

from tests.harness.held import Client, HeldBranch
from tests.harness.union import Union
from tests.operate.conftest import told
from tests.reliability.silent import MANY, NEEDS_IT, Known, Others, place, read

pytestmark = pytest.mark.usefixtures("known")


@pytest.mark.parametrize("name", NEEDS_IT)
def test_who_needs_it_waits_and_nobody_else(held: HeldBranch, far: Union, name: str) -> None:
    """At each of the requests that the branch gets for an operation."""
    call, result = NEEDS_IT[name]
    others = Others(far)
    directory = far.at / "far" / place(name)
    held.hold()
    client = Client(lambda: call(directory))
    requests = 0
    while held.await_request(client):
        requests += 1
        others.require_answers()
        held.next()
    assert requests
    assert client.await_result() == result
    held.go()


@pytest.mark.parametrize("name", ["chmod", "set xattr", "append", "truncate", "rename"])
def test_with_copies_of_the_metadata_only(held: HeldBranch, far: Union, known: Known, name: str) -> None:
    """Of the metadata there is a copy before, or it is made now."""
    known.close()
    far.unmount()
    far.mount("metacopy=on", lowers=[far.low, held.at])
    near = Known(far.at, ["near", "mine", "far", f"far/{place(name)}"])
    if name in ("append", "truncate"):
        (far.at / "far" / place(name) / "file").chmod(0o600)
    test_who_needs_it_waits_and_nobody_else(held, far, name)
    near.close()


def test_how_much_space_there_is_on_it(held: HeldBranch, far: Union, known: Known) -> None:
    """Which is asked of the topmost branch."""
    known.close()
    far.unmount()
    far.mount(lowers=[held.at, far.low], writable=False)
    near = Known(far.at, ["near"])
    held.hold()
    client = Client(lambda: os.statvfs(far.at).f_namemax)
    assert held.await_request()
    assert Client(lambda: read(far.at / "near/0")).await_result() == "near"
    assert client.is_waiting()
    held.go()
    assert client.await_result() == 255
    near.close()


def test_the_status_names_it_and_answers_for_the_others(held: HeldBranch, far: Union) -> None:
    held.hold()
    for _ in range(3):
        states = {branch["path"]: branch["state"] for branch in told("status", far.at)["branches"]}
        assert states == {str(far.top): "ok", str(far.low): "ok", str(held.at): "does not answer"}
    held.go()
    assert {branch["state"] for branch in told("status", far.at)["branches"]} == {"ok"}


@pytest.mark.parametrize("far", ["extension"], indirect=True)
def test_as_many_as_ever_may_wait(held: HeldBranch, far: Union) -> None:
    """For look-ups, and for data that the kernel reads ahead."""
    files = [far.at / f"far/many/{number}" for number in range(MANY)]
    opened = [path.open("rb") for path in files[: MANY // 2]]
    held.hold()
    clients = [Client(lambda file=file: len(file.read())) for file in opened]  # type: ignore[misc]
    clients += [Client(lambda path=path: len(path.read_bytes())) for path in files[MANY // 2 :]]  # type: ignore[misc]
    for _ in range(40):  # so many threads wait for one branch, and all others for them
        assert held.await_request()
    Others(far).require_answers()
    held.go()
    assert [client.await_result() for client in clients] == [100_000] * MANY
    for file in opened:
        file.close()


@pytest.mark.parametrize("name", NEEDS_IT)
def test_a_killed_client_that_waits_for_it_holds_nobody_up(held: HeldBranch, far: Union, name: str) -> None:
    call, result = NEEDS_IT[name]
    directory = far.at / "far" / place(name)
    held.hold()
    client = Client(lambda: call(directory))
    assert held.await_request()
    client.kill()
    Others(far).require_answers()
    held.go()
    client.await_end()
    client = Client(lambda: call(directory))
    assert client.await_result() in (result, "EEXIST", "ENOENT", False)


@pytest.mark.parametrize("name", NEEDS_IT)
def test_when_it_dies_those_who_wait_hear_so(held: HeldBranch, far: Union, known: Known, name: str) -> None:
    call, _ = NEEDS_IT[name]
    directory = far.at / "far" / place(name)
    held.hold()
    client = Client(lambda: call(directory))
    assert held.await_request()
    held.die()
    assert client.await_result() in ("ENOTCONN", "ECONNABORTED", "EIO")
    Others(far).require_answers()
    sentences = [line for line in far.daemon.log().splitlines() if "the branch" in line]
    assert len(sentences) == 1
    assert str(held.at) in sentences[0]
    known.close()
    far.daemon.expect_complaints = True
    far.daemon.stop()
    far.forget()  # there is nothing to compare any more
