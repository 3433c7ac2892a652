"""Clients that wait for a lower branch which does not answer, and are killed: they end at once, change nothing, and
what the branch answers later is given back."""

from __future__ import annotations

import os
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.harness.held import Client, HeldBranch
from tests.harness.ready import until
from tests.harness.union import Union
from tests.operate.conftest import told
from tests.reliability.silent import MANY, NEEDS_IT, Known, Others, append, place

pytestmark = [pytest.mark.usefixtures("known"), pytest.mark.parametrize("far", ["extension"], indirect=True)]

SOON_S = 10.0  # on a busy machine
IDLE_S = 30.0  # trio's threads end 10 s after their last work


def _opened_below(union: Union, held: HeldBranch) -> list[str]:
    """What the daemon has open of the branch and the work directory, but for directories, which it keeps."""
    found = []
    for fd in Path(f"/proc/{union.daemon.pid}/fd").iterdir():
        try:
            target = os.readlink(fd).removesuffix(" (deleted)")
            inside = target.startswith((str(held.at), str(union.work)))
            if inside and not int((fd.parent.parent / "fdinfo" / fd.name).read_text().split()[3], 8) & os.O_DIRECTORY:
                found.append(target)
        except FileNotFoundError:
            continue  # closed meanwhile
    return found


def _kill_at(held: HeldBranch, client: Client, number: int) -> bool:
    """Kill a client at the request of that number; False if it ends before."""
    while held.await_request(client):
        if number == 0:
            client.kill()
            client.await_end(SOON_S)
            return True
        number -= 1
        held.next()
    return False


@pytest.mark.parametrize("name", NEEDS_IT)
def test_it_ends_at_once(held: HeldBranch, far: Union, name: str) -> None:
    """At each of the requests that the branch gets for an operation."""
    call, result = NEEDS_IT[name]
    directory = far.at / "far" / place(name)
    tried = 0
    held.hold()
    client = Client(lambda: call(directory))
    while _kill_at(held, client, tried):
        held.go()
        until(lambda: not _opened_below(far, held), "a late answer is not given back", SOON_S)
        tried += 1
        held.hold()
        client = Client(lambda: call(directory))
    held.go()
    assert tried
    assert client.await_result() in (result, "EEXIST", "ENOENT", False)  # some had made the change before they died


@pytest.mark.parametrize("name", ["append", "append beside a reader", "truncate", "open with O_TRUNC", "link"])
def test_with_copies_of_the_metadata_only(held: HeldBranch, far: Union, known: Known, name: str) -> None:
    """Which get their data, or are cut."""
    known.close()
    far.unmount()
    far.mount("metacopy=on", lowers=[far.low, held.at])
    (far.at / "far" / place(name) / "file").chmod(0o600)
    near = Known(far.at, ["near", "mine", "far", f"far/{place(name)}"])
    test_it_ends_at_once(held, far, name)
    near.close()


@pytest.mark.parametrize("name", ["append", "truncate", "open with O_TRUNC"])
@pytest.mark.parametrize("options", [(), ("metacopy=on",)], ids=["", "metacopy"])
def test_who_has_it_open_reads_the_same_as_before(
    held: HeldBranch, far: Union, known: Known, name: str, options: tuple[str, ...]
) -> None:
    """Descriptors change over to a copy before it is in place, and it may never get there."""
    known.close()
    far.unmount()
    far.mount(*options, lowers=[far.low, held.at])
    file = far.at / "far" / place(name) / "file"
    if options:
        file.chmod(0o600)
    near = Known(far.at, ["near", "mine", "far", f"far/{place(name)}"])
    call, result = NEEDS_IT[name]
    tried = 0
    with file.open("rb", buffering=0) as reader, file.open("rb", buffering=0) as other:
        held.hold()
        client = Client(lambda: call(file.parent))
        while _kill_at(held, client, tried):
            held.go()
            assert (os.pread(reader.fileno(), 10, 0), os.pread(other.fileno(), 10, 1)) == (b"far", b"ar")
            assert file.stat().st_size == 3
            tried += 1
            held.hold()
            client = Client(lambda: call(file.parent))
        held.go()
        assert tried
        assert client.await_result() == result
        assert os.pread(reader.fileno(), 10, 0) == file.read_bytes() == {
            "append": b"far more", "truncate": b"fa", "open with O_TRUNC": b"new"
        }[name]  # fmt: skip
    near.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGKILL])
@pytest.mark.parametrize("program", ["cat", "ls", "rm"])
def test_by_any_signal_that_ends_it(held: HeldBranch, far: Union, program: str, number: signal.Signals) -> None:
    held.hold()
    target = far.at / "far" / place("read") if program == "ls" else far.at / "far" / place("read") / "file"
    running = subprocess.Popen(["prlimit", "--core=0", program, target], stdout=subprocess.DEVNULL)
    assert held.await_request()
    running.send_signal(number)
    assert running.wait(SOON_S) == -number
    Others(far).require_answers()
    held.go()
    assert subprocess.run([program, target], capture_output=True, check=True).stdout == {
        "cat": b"far", "ls": b"dir\nfile\nsymlink\n", "rm": b""
    }[program]  # fmt: skip


def test_a_signal_that_is_handled_is_no_failure_and_a_later_one_kills(held: HeldBranch, far: Union) -> None:
    """The kernel tells of the first one only, and stat(2) is not made again by programs."""

    def call(name: str) -> int:
        signal.signal(signal.SIGUSR1, lambda *_: None)
        return (far.at / "far" / place("stat") / name).lstat().st_size

    def interrupts() -> int:
        return int(told("status", far.at)["requests"].get("interrupt", 0))

    others = Others(far)
    held.hold()
    for told_before, (name, ends) in enumerate([("symlink", False), ("file", True)]):
        client = Client(lambda: call(name))  # noqa: B023
        assert held.await_request()
        client.kill(signal.SIGUSR1)
        until(lambda: interrupts() > told_before, "the kernel has not told of the signal", SOON_S)  # noqa: B023
        others.require_answers()
        assert client.is_waiting()
        if ends:
            client.kill()
            client.await_end(SOON_S)
        else:
            held.go()
            assert client.await_result() == len("file")  # the symlink's target
            held.hold()


def test_who_waits_for_the_copy_of_another(held: HeldBranch, far: Union) -> None:
    """May be killed, and the other may as well; then he who comes next makes it."""
    file = far.at / "far" / place("append") / "file"
    assert Client(lambda: file.stat().st_size).await_result() == 3
    held.hold()
    first, second = Client(lambda: append(file)), Client(lambda: append(file))
    assert held.await_request()
    second.kill()
    second.await_end(SOON_S)
    assert first.is_waiting()
    third = Client(lambda: append(file))
    first.kill()
    first.await_end(SOON_S)
    held.go()
    assert third.await_result() == "far more"
    assert not _opened_below(far, held)


def test_many_leave_nothing_behind(held: HeldBranch, far: Union, known: Known) -> None:
    """More than there are threads for one branch."""

    def size(file: Path) -> int:
        return len(file.read_bytes())

    for number in range(MANY):
        os.stat(far.at / f"far/many/{number}")
    threads = Path(f"/proc/{far.daemon.pid}/task")
    before = len(os.listdir(threads))
    held.hold()
    files = [far.at / f"far/many/{number}" for number in range(MANY)]
    clients = [Client(partial(size, file)) for file in files]
    for _ in range(40):
        assert held.await_request()
    for client in clients:
        client.kill()
    for client in clients:
        client.await_end(SOON_S)
    Others(far).require_answers()
    held.go()
    until(lambda: not _opened_below(far, held), "files stay open", SOON_S)
    assert [size(file) for file in files] == [100_000] * MANY
    until(lambda: len(os.listdir(threads)) <= before, "threads are left", IDLE_S)
