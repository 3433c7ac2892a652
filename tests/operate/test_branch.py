"""`pyunion branch`: the lower branches of a union that is mounted change, and what is seen is what they are then."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyunion.errors import ExitCode
from tests.harness.files import append, make_opaque, outcome, run, write
from tests.harness.mounts import KernelMount, Layers
from tests.harness.union import Union
from tests.harness.warm import pyunion as run_pyunion
from tests.operate.conftest import connection_to, told
from tests.operate.live import NAMES, change, grow, held, numbers, refused, walk

# -- what is seen -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("place", [1, 2, 3, 4])
def test_a_branch_is_added_and_removed_anywhere(three: Union, place: int, known: bool) -> None:
    """What the kernel has looked at before, names that were not there among it, is no other than what it has not."""
    more = three.base / "more"
    before = [three.low, three.low2, three.low3]
    three.mount()
    if known:
        walk(three.at)
    change(three, "add", more, *{1: ["--top"], 4: ["--bottom"]}.get(place, ["--position", str(place)]))
    three.restacked(*before[: place - 1], more, *before[place - 1 :])
    assert (three.at / "appears").read_text() == "new"
    three.assert_shows_its_branches()
    branches = [branch["path"] for branch in told("status", three.at)["branches"][1:]]
    assert branches == [str(path) for path in (*before[: place - 1], more, *before[place - 1 :])]
    if known:
        walk(three.at)
    change(three, "remove", more)
    three.restacked(*before)
    assert not (three.at / "appears").exists()
    three.assert_shows_its_branches()
    three.remount()


def test_the_top_is_the_default(three: Union) -> None:
    three.mount()
    change(three, "add", three.base / "more")
    three.restacked(three.base / "more", three.low, three.low2, three.low3)
    assert (three.at / "all").read_text() == "all of more"


def test_upper_is_above_all(three: Union) -> None:
    three.mount()
    append(three.at / "all", ", changed")
    (three.at / "gone").unlink()
    (three.at / "dir").rename(three.at / "moved")
    (three.at / "fresh").mkdir()
    write(three.base / "more/fresh/below")
    write(three.base / "more/moved/below")
    write(three.base / "more/gone2")
    change(three, "add", three.base / "more")
    three.restacked(three.base / "more", three.low, three.low2, three.low3)
    assert (three.at / "all").read_text() == "all of 1, changed"
    assert not (three.at / "gone").exists()
    assert sorted(os.listdir(three.at / "moved")) == ["all", "appears", "only1", "only2", "only3"]
    assert os.listdir(three.at / "fresh") == []
    three.assert_shows_its_branches()
    change(three, "remove", three.low)
    three.restacked(three.base / "more", three.low2, three.low3)
    assert (three.at / "all").read_text() == "all of 1, changed"


def test_a_union_without_upper(three: Union) -> None:
    three.mount(writable=False)
    walk(three.at)
    change(three, "add", three.base / "more")
    three.restacked(three.base / "more", three.low, three.low2, three.low3)
    three.assert_shows_its_branches()
    change(three, "remove", three.low)
    change(three, "remove", three.base / "more")
    change(three, "remove", three.low3)
    three.restacked(three.low2)
    assert run("df", "--output=size", three.at) == run("df", "--output=size", three.low2)


def test_without_the_extension(bare: Union) -> None:
    write(bare.low / "file", "lower")
    write(bare.low2 / "file", "added")
    write(bare.low2 / "dir/appears")
    bare.mount(lowers=[bare.low])
    walk(bare.at)
    assert not (bare.at / "dir").exists()
    change(bare, "add", bare.low2)
    bare.restacked(bare.low2, bare.low)
    assert (bare.at / "file").read_text() == "added"
    assert (bare.at / "dir/appears").exists()
    change(bare, "remove", bare.low2)
    bare.restacked(bare.low)
    assert (bare.at / "file").read_text() == "lower"


def test_marks_of_what_was_the_bottom_begin_to_count(pyunion: Union) -> None:
    make_opaque(pyunion.low / "shut")
    write(pyunion.low / "shut/own")
    (pyunion.low / "moved").mkdir()
    os.setxattr(pyunion.low / "moved", "trusted.overlay.redirect", b"/old")
    write(pyunion.low2 / "shut/below")
    write(pyunion.low2 / "old/below")
    write(pyunion.low2 / "moved/another")
    write(pyunion.low / "copy").write_bytes(bytes(4))
    os.setxattr(pyunion.low / "copy", "trusted.overlay.metacopy", b"")
    os.setxattr(pyunion.low / "copy", "trusted.overlay.redirect", b"/data")
    write(pyunion.low2 / "data", "data")
    pyunion.mount(lowers=[pyunion.low])
    walk(pyunion.at)
    change(pyunion, "add", pyunion.low2, "--bottom")
    pyunion.restacked(pyunion.low, pyunion.low2)
    assert os.listdir(pyunion.at / "shut") == ["own"]
    assert os.listdir(pyunion.at / "moved") == ["below"]
    assert (pyunion.at / "copy").read_text() == "data"


def test_aufs_marks_hide_and_stop_hiding(pyunion: Union) -> None:
    pyunion.compare_with_kernel = False  # it does not know these marks
    write(pyunion.low / "file")
    write(pyunion.low / "dir/file")
    write(pyunion.low2 / ".wh.file")
    write(pyunion.low2 / "dir/.wh..wh..opq")
    pyunion.mount("aufs", lowers=[pyunion.low])
    walk(pyunion.at)
    change(pyunion, "add", pyunion.low2)
    pyunion.restacked(pyunion.low2, pyunion.low)
    assert os.listdir(pyunion.at) == ["dir"]
    assert os.listdir(pyunion.at / "dir") == []
    change(pyunion, "remove", pyunion.low2)
    pyunion.restacked(pyunion.low)
    assert sorted(os.listdir(pyunion.at)) == ["dir", "file"]
    assert os.listdir(pyunion.at / "dir") == ["file"]


def test_many_branches_and_their_listed_names(pyunion: Union) -> None:
    """Of many layers it is kept in mind which has a name first."""
    branches = [pyunion.base / f"branch{number}" for number in range(12)]
    for number, branch in enumerate(branches):
        write(branch / "dir/all", f"{number}")
        write(branch / f"dir/only{number}")
    pyunion.mount(lowers=branches[6:])
    for _ in range(5):
        walk(pyunion.at)
        outcome((pyunion.at / f"dir/{random.random()}").stat)
    for number in reversed(range(6)):
        change(pyunion, "add", branches[number])
        pyunion.restacked(*branches[number:])
        assert (pyunion.at / "dir/all").read_text() == f"{number}"
        assert (pyunion.at / f"dir/only{number}").exists()
    change(pyunion, "remove", branches[3])
    pyunion.restacked(*branches[:3], *branches[4:])
    assert not (pyunion.at / "dir/only3").exists()
    pyunion.assert_shows_its_branches()


def _use(at: Path, random_: random.Random) -> None:
    """Some change to the union, whichever is possible."""
    paths = [Path(here) / name for here, directories, files in os.walk(at) for name in (*directories, *files)]
    if not paths:
        (at / "a").mkdir()
        return
    path = random_.choice(paths)
    action: Callable[[], object] = random_.choice([
        lambda: append(path, "x"), path.unlink, path.rmdir, lambda: path.mkdir(), lambda: write(path / "b", "new"),
        lambda: path.rename(random_.choice(paths)), lambda: path.rename(at / random_.choice(NAMES)),
        lambda: os.chown(path, 1, 1, follow_symlinks=False),
    ])  # fmt: skip
    outcome(action)


@pytest.mark.parametrize("seed", range(12))
def test_any_branches_in_any_order(pyunion: Union, seed: int) -> None:
    """With a kernel that knows much of the union, and while that is changed. The kernel's overlayfs is no reference
    here: it lists whiteouts where nothing merges."""
    pyunion.compare_with_kernel = False
    random_ = random.Random(seed)
    branches = [pyunion.base / f"branch{number}" for number in range(5)]
    for branch in branches:
        grow(branch, random_)
    stack = branches[:2]
    pyunion.mount(lowers=stack)
    for _ in range(15):
        walk(pyunion.at)
        for _ in range(2):
            _use(pyunion.at, random_)
        branch = random_.choice(branches)
        if branch not in stack:
            place = random_.randrange(len(stack) + 1)
            stack.insert(place, branch)
            change(pyunion, "add", branch, "--position", str(place + 1))
        elif len(stack) > 1:
            stack.remove(branch)
            change(pyunion, "remove", branch)
        pyunion.restacked(*stack)
        pyunion.assert_shows_its_branches(by_the_kernel=False)


# -- numbers ------------------------------------------------------------------------------------------------------


def test_numbers_of_what_stays_stay(tmpfs: Path, three: Union) -> None:
    """Also where the branch is on another file system, and when the kernel has forgotten them meanwhile."""
    write(tmpfs / "branch/appears", "new")
    write(tmpfs / "branch/dir/appears", "new")
    three.mount()
    append(three.at / "only1", ", changed")
    before = numbers(three.at)
    change(three, "add", tmpfs / "branch", "--bottom")
    added = numbers(three.at)
    Path("/proc/sys/vm/drop_caches").write_text("2")
    assert numbers(three.at) == added
    assert added == before | {name: added[name] for name in ("appears", "dir/appears")}
    assert len(set(added.values())) == len(added)
    append(three.at / "appears", ", changed")
    assert numbers(three.at) == added
    change(three, "remove", three.low2)
    removed = numbers(three.at)
    Path("/proc/sys/vm/drop_caches").write_text("2")
    assert numbers(three.at) == removed
    assert removed == {name: number for name, number in added.items() if not name.endswith("only2")}
    three.restacked(three.low, three.low3, tmpfs / "branch")
    three.unmount()


def test_what_is_shown_again_is_the_same_file(pyunion: Union) -> None:
    write(pyunion.low / "file", "lower")
    write(pyunion.low2 / "file", "above")
    pyunion.mount(lowers=[pyunion.low])
    with (pyunion.at / "file").open() as held:
        number = os.fstat(held.fileno()).st_ino
        change(pyunion, "add", pyunion.low2)
        assert (pyunion.at / "file").stat().st_ino != number
        change(pyunion, "remove", pyunion.low2)
        pyunion.restacked(pyunion.low)
        assert (pyunion.at / "file").stat().st_ino == number
        append(pyunion.at / "file", ", changed")
        assert held.read() == "lower, changed"


# -- the whole list -----------------------------------------------------------------------------------------------


def test_branches_change_places(three: Union) -> None:
    three.mount()
    append(three.at / "only1", ", changed")
    for lowers in (
        (three.low3, three.low2, three.low),
        (three.low2, three.base / "more", three.low3),
        (three.low,),
        (three.base / "more", three.low2, three.low3, three.low),
    ):
        walk(three.at)
        before = numbers(three.at)
        with connection_to(three) as connection, ExitStack() as held:  # what the kernel forgets may get other numbers
            for name in {"deep", "dir"} & before.keys():
                held.callback(os.close, os.open(three.at / name, os.O_PATH))
            paths = [str(path) for path in lowers]
            assert connection.ask("branches", set=paths) == {"branches": paths}
            three.restacked(*lowers)
            three.assert_shows_its_branches()
            after = numbers(three.at)
        assert {after[name] for name in ("deep", "dir") if name in before} == {before["deep"], before["dir"]}


def test_by_a_file_for_a_remount(three: Union) -> None:
    """What a service does for `systemctl reload`."""
    three.mount()
    lowers = [three.base / "more", three.low3]
    config = write(
        three.base / "union.toml",
        f"lower = {json.dumps(list(map(str, lowers)))}\nupper = '{three.top}'\nwork = '{three.work}'\n"
        f"mountpoint = '{three.at}'\n",
    )
    done = run_pyunion("mount", "--config", config, "-o", "remount")
    assert (done.returncode, done.stderr) == (0, "")
    three.restacked(*lowers)
    assert (three.at / "all").read_text() == "all of more"
    lowers = [three.low, three.base / "nowhere"]
    write(config, config.read_text().replace(f'"{three.base}/more"', f'"{three.base}/nowhere"'))
    done = run_pyunion("mount", "--config", config, "-o", "remount")
    assert done.returncode == ExitCode.BRANCH
    assert (three.at / "all").read_text() == "all of more"
    # and again what is said elsewhere has to be so already
    done = run_pyunion("mount", "-o", f"remount,ro,lowerdir={three.low}", three.at)
    assert done.returncode == ExitCode.USAGE
    assert "cannot change lowerdir" in done.stderr


# -- refusals -----------------------------------------------------------------------------------------------------


def test_what_is_no_branch_for_this_union(pyunion: Union) -> None:
    write(pyunion.low / "file")
    write(pyunion.base / "file")
    (pyunion.base / "link").symlink_to("lower1")
    for name in ("sub", "upper/below", "work/below", "lower1/below"):
        (pyunion.base / name).mkdir()
    pyunion.mount(lowers=[pyunion.low])
    (pyunion.at / "inside").mkdir()
    cases = {
        "nowhere": "lower branch {path} does not exist; create it or correct the path",
        "file": "lower branch {path} is not a directory",
        "lower1": "lower branch {path} is a branch of {at} already; name each branch once",
        "upper": "lower branch {path} is a branch of {at} already; name each branch once",
        "upper/below": "lower branch {path} lies inside the upper branch {base}/upper; use directories that do not "
        "overlap",
        "work/below": "lower branch {path} lies inside the work directory {base}/work; use directories that do not "
        "overlap",
        "lower1/below": "lower branch {path} lies inside the lower branch {base}/lower1; use directories that do not "
        "overlap",
        ".": "upper branch {base}/upper lies inside the lower branch {path}; use directories that do not overlap",
        "union/inside": "lower branch {path} lies in the union on {at}; name a directory outside of it",
        "union": "lower branch {path} lies in the union on {at}; name a directory outside of it",
    }
    for name, sentence in cases.items():
        path = os.path.normpath(pyunion.base / name)
        said = sentence.format(path=path, at=pyunion.at, base=pyunion.base)
        assert refused(pyunion, "add", Path(path)) == (ExitCode.BRANCH, said)
    pyunion.unmount()
    pyunion.mount(lowers=[pyunion.low / "below"])
    assert refused(pyunion, "add", pyunion.low) == (
        ExitCode.BRANCH,
        f"lower branch {pyunion.low}/below lies inside the lower branch {pyunion.low}; use directories that do not "
        "overlap",
    )
    pyunion.unmount()
    pyunion.mount(lowers=[pyunion.low])
    assert refused(pyunion, "add", pyunion.base / "link")[1].startswith(f"lower branch {pyunion.low} is a branch")
    assert refused(pyunion, "remove", pyunion.low) == (
        ExitCode.BRANCH, f"it is the last lower branch of {pyunion.at}, and a union has one at least",
    )  # fmt: skip
    assert refused(pyunion, "remove", pyunion.base / "sub") == (
        ExitCode.BRANCH,
        f"{pyunion.base}/sub is no lower branch of {pyunion.at}; `pyunion status {pyunion.at}` lists them",
    )
    assert refused(pyunion, "remove", pyunion.top)[1].startswith(f"{pyunion.top} is the upper branch of")
    code, said = refused(pyunion, "add", pyunion.base / "sub", "--position", "3")
    assert (code, said.partition(":")[0]) == (ExitCode.USAGE, "there is no position 3")
    assert refused(pyunion, "add", pyunion.base / "sub", "--position", "0")[0] == ExitCode.USAGE
    assert refused(pyunion, "remove", pyunion.base / "sub", "--bottom")[0] == ExitCode.USAGE
    assert [branch["path"] for branch in told("status", pyunion.at)["branches"]] == [
        str(pyunion.top), str(pyunion.low),
    ]  # fmt: skip
    assert pyunion.daemon.descriptors() <= 40


def test_a_branch_that_the_index_cannot_find_anything_in(pyunion: Union) -> None:
    """Hard links of it would part at the next mount, which has no index then, and old contents show."""
    write(pyunion.low / "file")
    overlay = pyunion.base / "overlay"
    overlay.mkdir()
    mounted = KernelMount(overlay)
    mounted.start(Layers([pyunion.low2, pyunion.low3]))
    try:
        pyunion.mount(lowers=[pyunion.low])
        code, said = refused(pyunion, "add", overlay)
        assert code == ExitCode.BRANCH
        assert said.startswith(f"{overlay}: there are no lasting file handles")
        pyunion.unmount()
        pyunion.mount("index=off", lowers=[pyunion.low])
        change(pyunion, "add", overlay)
        change(pyunion, "remove", overlay)
        pyunion.restacked(pyunion.low)
    finally:
        mounted.stop()


def test_data_only_branches_stay(pyunion: Union) -> None:
    write(pyunion.low2 / "file")
    pyunion.mount(lowers=[pyunion.low], data=[pyunion.low3])
    assert refused(pyunion, "remove", pyunion.low3)[1].startswith(f"{pyunion.low3} is a data-only branch")
    change(pyunion, "add", pyunion.low2, "--bottom")
    pyunion.restacked(pyunion.low, pyunion.low2)
    roles = [branch["role"] for branch in told("status", pyunion.at)["branches"]]
    assert roles == ["upper", "lower", "lower", "data"]


def test_a_mount_that_is_none(scratch: Path) -> None:
    for done in (run_pyunion("branch", "add", scratch, scratch), run_pyunion("refresh", scratch)):
        assert done.returncode == ExitCode.MOUNT
        assert f"no union is mounted on {scratch}" in done.stderr


def test_descriptors_are_given_back(tmpfs: Path, three: Union) -> None:
    write(tmpfs / "branch/dir/appears", "new")
    three.mount()
    counts = []
    for _ in range(12):
        change(three, "add", tmpfs / "branch")
        walk(three.at)
        append(three.at / "dir/appears", "x")
        (three.at / "dir/appears").unlink()
        assert held(three, tmpfs) > 0
        change(three, "remove", tmpfs / "branch")
        walk(three.at)
        assert held(three, tmpfs) == 0
        counts.append(three.daemon.descriptors())
    assert counts[-1] <= counts[1] + 3
    three.unmount()
