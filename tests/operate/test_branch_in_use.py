"""`pyunion branch`: who uses the union meanwhile goes on, and upper loses nothing."""

from __future__ import annotations

import mmap
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyunion.errors import ExitCode
from tests.harness.files import append, outcome, write
from tests.harness.mounts import PATIENCE, KernelMount, Layers
from tests.harness.snapshot import assert_same, snapshot
from tests.harness.union import Union
from tests.harness.warm import pyunion as run_pyunion
from tests.operate.conftest import Slow, told
from tests.operate.live import await_free, change, held, numbers, refused, walk

# -- who is there -------------------------------------------------------------------------------------------------


def test_open_files_and_mappings_of_a_removed_branch_go_on(tmpfs: Path, pyunion: Union) -> None:
    text = "x" * 2_000_000
    write(tmpfs / "branch/file", text)
    write(tmpfs / "branch/mapped", text)
    write(tmpfs / "branch/changed", text)
    write(pyunion.low / "changed", "below")
    pyunion.mount(lowers=[tmpfs / "branch", pyunion.low])
    with (
        (pyunion.at / "file").open() as file,
        (pyunion.at / "mapped").open("rb") as to_map,
        (pyunion.at / "changed").open("r+") as writer,
    ):
        mapped = mmap.mmap(to_map.fileno(), 0, prot=mmap.PROT_READ)
        to_map.close()
        size = os.fstat(file.fileno())
        writer.write("y")
        change(pyunion, "remove", tmpfs / "branch")
        pyunion.restacked(pyunion.low)
        assert os.listdir(pyunion.at) == ["changed"]
        assert file.read() == text
        assert os.fstat(file.fileno()) == size
        assert Path(f"/proc/self/fd/{file.fileno()}").read_text() == text
        assert mapped[:] == text.encode()
        writer.write("y")
        assert told("status", pyunion.at)["removed"] == []
        assert held(pyunion, tmpfs) > 0
        mapped.close()
    assert (pyunion.at / "changed").read_text() == "yy" + text[2:]
    await_free(pyunion, tmpfs)  # with the last of them


def test_whoever_is_in_a_removed_directory_can_leave_it(tmpfs: Path, pyunion: Union) -> None:
    write(tmpfs / "branch/dir/below/file")
    pyunion.mount(lowers=[tmpfs / "branch", pyunion.low])
    with subprocess.Popen(
        ["sh", "-c", "echo in; read _; ls -A; cat file; touch new; ls ..; cd /; echo out"],
        cwd=pyunion.at / "dir/below", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as inside:  # fmt: skip
        assert inside.stdout is not None
        assert inside.stdout.readline() == b"in\n"
        change(pyunion, "remove", tmpfs / "branch")
        pyunion.restacked(pyunion.low)
        assert told("status", pyunion.at)["removed"] == [str(tmpfs / "branch")]
        assert f"removed     {tmpfs}/branch" in run_pyunion("status", pyunion.at, COLUMNS="300").stdout
        said = inside.communicate(b"\n", timeout=PATIENCE)[0].decode()
    assert "new': No such file or directory" in said
    assert said.endswith("out\n")
    assert os.listdir(pyunion.at) == []
    await_free(pyunion, tmpfs)
    assert told("status", pyunion.at)["removed"] == []


def test_whoever_is_in_a_merged_directory_stays_in_it(three: Union) -> None:
    """It goes on under its name, with other parts."""
    three.mount()
    with subprocess.Popen(
        ["sh", "-c", "echo in; while read command; do eval $command; pwd -P; echo done; done"],
        cwd=three.at / "dir", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as inside:  # fmt: skip

        def says(command: str) -> list[str]:
            assert inside.stdin is not None
            inside.stdin.write(command.encode() + b"\n")
            inside.stdin.flush()
            return list(iter(lambda: said.readline().decode().rstrip("\n"), "done"))

        assert inside.stdout is not None
        said = inside.stdout
        assert inside.stdout.readline() == b"in\n"
        where = str(three.at / "dir")
        assert says("cat all") == ["dir of 1" + where]
        for branch in (three.base / "more", three.low):
            change(three, "add" if branch != three.low else "remove", branch)
        three.restacked(three.base / "more", three.low2, three.low3)
        assert says("cat all appears") == ["dir of morenew" + where]
        assert says("ls") == ["all", "appears", "only2", "only3", where]
        assert says("echo x > new; cat new") == ["x", where]
        inside.communicate(timeout=PATIENCE)


@contextmanager
def _clients(at: Path, *loops: Callable[[], object]) -> Iterator[list[BaseException]]:
    """Threads that do the same again and again until the end."""
    end = threading.Event()
    failures: list[BaseException] = []

    def run_loop(loop: Callable[[], object]) -> None:
        try:
            while not end.is_set():
                loop()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run_loop, args=(loop,)) for loop in loops]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        end.set()
        for thread in threads:
            thread.join(PATIENCE)


@pytest.mark.parametrize("options", [(), ("passthrough=off",)], ids=["passthrough", "writeback"])
def test_clients_in_parallel_see_before_or_after(pyunion: Union, options: tuple[str, ...]) -> None:
    """Others walk, read and write meanwhile, and nobody sees anything that is neither; nothing hangs or is lost."""
    for number in range(100):
        write(pyunion.low / f"dir{number % 10}/file{number}", "lower")
        write(pyunion.low2 / f"dir{number % 10}/file{number}", "added")
        write(pyunion.low / f"copied/file{number}", "x" * 50_000)
        write(pyunion.low2 / f"copied/more{number}", "x" * 50_000)
    pyunion.mount(*options, lowers=[pyunion.low])
    written = 0

    def read() -> None:
        for number in range(100):
            assert (pyunion.at / f"dir{number % 10}/file{number}").read_text() in ("lower", "added")

    def walk() -> None:
        for _, _, files in os.walk(pyunion.at):
            assert files is not None

    def copy() -> None:
        nonlocal written
        append(pyunion.at / f"copied/file{written % 100}", "y")
        written += 1

    def make() -> None:
        path = pyunion.at / "dir0/made"
        path.write_text("made")
        assert path.read_text() == "made"
        path.rename(pyunion.at / "dir1/made")
        (pyunion.at / "dir1/made").unlink()

    with _clients(pyunion.at, read, walk, copy, make) as failures:
        for _ in range(10):
            change(pyunion, "add", pyunion.low2)
            assert (pyunion.at / "dir0/file0").read_text() == "added"
            change(pyunion, "remove", pyunion.low2)
            assert (pyunion.at / "dir0/file0").read_text() == "lower"
    assert failures == []
    pyunion.restacked(pyunion.low)
    for number in range(100):
        size = (pyunion.at / f"copied/file{number}").stat().st_size
        assert size == 50_000 + written // 100 + (number < written % 100)


def test_a_copy_that_has_begun_ends_first(slow: Slow, pyunion: Union) -> None:
    pyunion.compare_with_kernel = pyunion.watch_lowers = False
    pyunion.mount(lowers=[slow.at, pyunion.low])
    writing = threading.Thread(target=append, args=(pyunion.at / "big", "end"))
    writing.start()
    while not told("status", pyunion.at)["copy_ups"]["running"]:
        assert writing.is_alive()
    removing = threading.Thread(target=change, args=(pyunion, "remove", slow.at))
    removing.start()
    while "waiting for files that are being copied to upper" not in pyunion.daemon.log():
        assert removing.is_alive()
    write(pyunion.at / "another")
    slow.proceed()
    writing.join(PATIENCE)
    removing.join(PATIENCE)
    assert not removing.is_alive()
    assert (pyunion.at / "big").stat().st_size == 2 * slow.HALF + 3
    pyunion.unmount()


# -- upper --------------------------------------------------------------------------------------------------------


def test_copies_from_an_added_branch_are_as_any_other(three: Union) -> None:
    """Also those of hard-linked files, and in directories that had been merged before. The kernel's overlayfs takes
    over what is left."""
    more = three.base / "more"
    write(more / "dir/one", "linked")
    os.link(more / "dir/one", more / "two")
    three.mount()
    walk(three.at)
    change(three, "add", more, "--position", "2")
    three.restacked(three.low, more, three.low2, three.low3)
    append(three.at / "appears", ", changed")
    append(three.at / "dir/one", ", changed")
    (three.at / "new").rename(three.at / "dir/new")
    assert (three.at / "two").read_text() == "linked, changed"
    assert (three.at / "two").stat().st_ino == (three.at / "dir/one").stat().st_ino
    before, view = numbers(three.at), snapshot(three.at)
    three.compare_with_kernel = False  # without upper's index: three links
    three.unmount()
    lowers = (three.low, more, three.low2, three.low3)
    kernel = KernelMount(three.at)
    kernel.start(Layers(lowers, three.top, three.work), ["index=on"])
    assert_same(view, snapshot(three.at), "this mount | the kernel")
    after = numbers(three.at)
    tops = {name: after[name] for name in ("mode", "shut")}  # directories whose topmost part is another one now
    assert after == before | tops
    kernel.stop()
    three.mount(lowers=lowers)
    assert_same(view, snapshot(three.at), "before | after")


def test_what_upper_holds_stays_without_the_branch(three: Union) -> None:
    """A directory that was moved keeps what is in upper, and whiteouts go on to hide."""
    three.mount()
    append(three.at / "deep/er/only1", ", changed")
    (three.at / "deep").rename(three.at / "moved")
    (three.at / "all").unlink()
    for branch in (three.low, three.low3):
        change(three, "remove", branch)
    three.restacked(three.low2)
    assert (three.at / "moved/er/only1").read_text() == "1, changed"
    assert sorted(os.listdir(three.at / "moved/er")) == ["only1", "only2"]
    assert not (three.at / "all").exists()
    three.assert_shows_its_branches()


@pytest.mark.parametrize("depth", ["", "dir/"])
def test_data_that_a_copy_needs_keep_their_branch(pyunion: Union, depth: str) -> None:
    write(pyunion.low / f"{depth}file", "data")
    write(pyunion.low2 / "other")
    write(pyunion.base / f"more/{depth}file", "other data")
    pyunion.mount("metacopy=on", lowers=[pyunion.low, pyunion.low2])
    (pyunion.at / f"{depth}file").chmod(0o600)
    if depth:
        (pyunion.at / "dir").rename(pyunion.at / "moved")
        depth = "moved/"
    for action, branch in (("remove", pyunion.low), ("add", pyunion.base / "more")):
        code, said = refused(pyunion, action, branch)
        assert code == ExitCode.BUSY
        assert said == (
            f"{pyunion.at}/{depth}file was copied up without its data, and would have other ones or none; write to it "
            "(`touch` is not enough) or remove it, and try it again"
        )
        assert (pyunion.at / f"{depth}file").read_text() == "data"
    change(pyunion, "add", pyunion.base / "more", "--bottom")
    change(pyunion, "remove", pyunion.low2)
    append(pyunion.at / f"{depth}file", ", changed")
    change(pyunion, "remove", pyunion.low)
    pyunion.restacked(pyunion.base / "more")
    assert (pyunion.at / f"{depth}file").read_text() == "data, changed"


def test_a_change_by_another_name_keeps_the_branch(pyunion: Union) -> None:
    write(pyunion.low / "dir/one", "linked")
    os.link(pyunion.low / "dir/one", pyunion.low / "two")
    write(pyunion.low2 / "other")
    pyunion.mount(lowers=[pyunion.low, pyunion.low2])
    append(pyunion.at / "dir/one", ", changed")
    (pyunion.at / "dir/one").unlink()
    change(pyunion, "remove", pyunion.low2)
    change(pyunion, "add", pyunion.low2)
    code, said = refused(pyunion, "remove", pyunion.low)
    assert code == ExitCode.BUSY
    assert "/two has hard links" in said or "/dir/one has hard links" in said
    assert (pyunion.at / "two").read_text() == "linked, changed"
    (pyunion.at / "two").unlink()
    change(pyunion, "remove", pyunion.low)
    pyunion.restacked(pyunion.low2)


def test_a_metadata_only_copy_in_a_lower_branch_never_shows_zeros(pyunion: Union) -> None:
    pyunion.compare_with_kernel = False
    pyunion.daemon.expect_complaints = True
    write(pyunion.low2 / "file", "data")
    pyunion.mount("metacopy=on", lowers=[pyunion.low2])
    (pyunion.at / "file").chmod(0o600)
    pyunion.unmount()
    copy = pyunion.top
    pyunion.top, pyunion.work = pyunion.low3, pyunion.base / "work2"
    pyunion.work.mkdir()
    pyunion.mount("metacopy=on", lowers=[copy, pyunion.low2])
    assert (pyunion.at / "file").read_text() == "data"
    change(pyunion, "remove", pyunion.low2)
    pyunion.restacked(copy)
    assert outcome((pyunion.at / "file").read_text) == "EIO"
    change(pyunion, "add", pyunion.low2, "--bottom")
    pyunion.restacked(copy, pyunion.low2)
    assert (pyunion.at / "file").read_text() == "data"


def test_a_directory_that_moved_meanwhile_finds_its_parts_again(pyunion: Union) -> None:
    """Where its redirect leads nowhere, it still says what it is a part of."""
    write(pyunion.low / "doc/file")
    write(pyunion.low / "sub/doc/another")
    write(pyunion.low2 / "other")
    pyunion.mount(lowers=[pyunion.low, pyunion.low2])
    (pyunion.at / "doc").rename(pyunion.at / "help")
    change(pyunion, "remove", pyunion.low)
    assert os.listdir(pyunion.at / "help") == []
    (pyunion.at / "sub").mkdir()
    (pyunion.at / "help").rename(pyunion.at / "sub/doc")
    change(pyunion, "add", pyunion.low)
    assert os.listdir(pyunion.at / "sub/doc") == ["file"]
    pyunion.restacked(pyunion.low, pyunion.low2)
    pyunion.assert_shows_its_branches()
