"""`pyunion flatten` and `squash` that were interrupted go on, and end as if they had not been.

They are killed before many of their system calls. What an interrupted run leaves is no result, and the same command
makes one of it that has every byte, attribute and time of an uninterrupted one, and nothing beside it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from pyunion.commands import flatten, squash  # by this process, so that no fork has to
from pyunion.layers import resuming
from tests.cli.command import clean_environment
from tests.harness.files import run, write
from tests.harness.filesystems import loop_mounted, mounted_at
from tests.harness.mounts import REPOSITORY
from tests.harness.snapshot import Snapshot, assert_same, snapshot
from tests.harness.union import Union
from tests.harness.warm import pyunion as command
from tests.layers.changes import change, fill
from trials.supervised import Action, Command
from trials.union import sample

_PRELOADED = (flatten, squash)
_POINTS = 25  # of a hundred or more calls


@pytest.fixture
def layers(pyunion: Union) -> Union:
    """Branches with something of each kind in them."""
    fill(pyunion)
    pyunion.mount()
    change(pyunion.at)
    os.link(write(pyunion.at / "one", "1"), pyunion.at / "two")
    (pyunion.at / "soft").symlink_to("one")
    os.mkfifo(pyunion.at / "pipe")
    write(pyunion.at / "big", "x" * 3_000_000)
    os.setxattr(pyunion.at / "big", "user.mark", b"x")
    (pyunion.at / "merged").chmod(0o555)
    pyunion.unmount()
    (pyunion.base / "results").mkdir()  # beside upper nothing comes, which would be looked at
    return pyunion


def _words(union: Union, what: str) -> list[str]:
    low, low2, low3 = map(str, (union.low, union.low2, union.low3))
    if what == "flatten":
        return ["flatten", "--upper", str(union.top), "--lower", f"{low}:{low2}:{low3}"]
    return ["squash", "--upper", str(union.top), "--lower", low, "--below", f"{low2}:{low3}"]


def _beside(folder: Path) -> list[Path]:
    """The half done work in a folder."""
    return [path for path in folder.iterdir() if path.name.startswith(os.fsdecode(resuming.PREFIX))]


def _with_access_times(top: Path) -> tuple[Snapshot, dict[str, int]]:
    """Without those of directories and symlinks, which a look at them moves."""
    files = [path for path in top.rglob("*") if path.is_file() and not path.is_symlink()]
    times = {str(path.relative_to(top)): path.stat().st_atime_ns for path in files}
    return snapshot(top), times


def _try(words: Sequence[str], to: Path, number: int = 0, action: Action | None = None) -> tuple[int, list[str]]:
    """Its exit status, and the system calls that it has made."""
    ran = Command()
    return ran.run([*words, to], to.with_name("log"), number, action), ran.calls


def _finish(words: Sequence[str], to: Path) -> list[str]:
    status, calls = _try(words, to)
    assert status == 0, to.with_name("log").read_text()
    return calls


def _number(calls: list[str], part: float) -> int:
    """The number of a call, after such a part of those that were made since the work was begun: much is asked of the
    file system before that, about languages and the like."""
    begun = calls.index("mkdir")
    return begun + int(part * (len(calls) - begun))


@pytest.mark.parametrize("what", ["flatten", "squash"])
def test_killed_anywhere_it_goes_on(layers: Union, what: str) -> None:
    words = _words(layers, what)
    calls = _finish(words, layers.base / "results/whole")
    expected = _with_access_times(layers.base / "results/whole")
    for number in sample(range(_number(calls, 0), len(calls) + 1), _POINTS):
        out = layers.base / "results/out"
        out.mkdir()
        new = out / "new"
        where = f"killed at call {number} ({calls[number - 1]})"
        assert _try(words, new, number)[0] == -signal.SIGKILL
        if new.exists():
            assert_same(expected[0], snapshot(new), f"{where} it is not whole")
            if _beside(out):  # only its end is missing; before the last call there is nothing that tells whose it was
                assert _try(words, new)[0] == (2 if number == len(calls) else 0)
        else:
            assert _try(words, new, _number(calls, 0.3))[0] in (0, -signal.SIGKILL)  # and once more
            if not new.exists() or _beside(out):
                _finish(words, new)
            found = _with_access_times(new)
            assert_same(expected[0], found[0], f"{where} and resumed it is another one")
            assert found[1] == expected[1]
        assert {path.name for path in out.iterdir()} == {"log", "new"}
        shutil.rmtree(out)


_READERS = """
import sys
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], bytes) and arguments[0].startswith(b"data"):
        print(arguments[0].decode())
sys.addaudithook(watch)
from pyunion.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_what_was_finished_is_not_read_again(layers: Union, by: signal.Signals) -> None:
    names = [write(layers.low / f"d{number % 3}/data{number}", "x").name for number in range(60)]
    words = _words(layers, "flatten")
    calls = _finish(words, layers.base / "results/whole")
    new = layers.base / "results/out/new"
    new.parent.mkdir()
    interrupted = Command()

    def interrupt() -> int:
        os.kill(interrupted.pid, by)
        return 0

    status = interrupted.run([*words, new], new.with_name("log"), _number(calls, 0.5), interrupt)
    assert status == -by
    assert not new.exists()
    (half,) = _beside(new.parent)
    finished = {path.name for path in (half / "tree").rglob("data*")}
    assert 0 < len(finished) < len(names)
    done = subprocess.run(
        [sys.executable, "-c", _READERS, *words, new],
        cwd=REPOSITORY, env=clean_environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert set(done.stdout.split()) == set(names) - finished
    assert_same(snapshot(layers.base / "results/whole"), snapshot(new), "resumed it is another one")


@pytest.mark.parametrize("seconds", [0, 1000], ids=["all was on disk", "nothing was on disk"])
def test_after_a_loss_of_power(layers: Union, monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    """What the disk has at one moment is mounted anew. What was not known to be there may be anything."""
    monkeypatch.setattr(resuming, "_SECONDS", seconds)
    words = _words(layers, "flatten")
    calls = _finish(words, layers.base / "results/whole")
    with loop_mounted("ext4", layers.base / "results/disk") as disk:
        assert _try(words, disk / "new", _number(calls, 0.6))[0] == -signal.SIGKILL
        if seconds:
            os.sync()
        run("cp", "--sparse=always", layers.base / "results/disk.image", layers.base / "results/copy.image")
    at = layers.base / "results/copy"
    with mounted_at(at, "mount", "-o", "loop", layers.base / "results/copy.image", at):
        (half,) = _beside(at)
        made = [path for path in (half / "tree").rglob("*") if path.is_file() and not path.is_symlink()]
        assert made
        for path in made if seconds else ():
            st = path.stat()
            path.write_bytes(bytes(st.st_size))
            os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))
        again = _finish(words, at / "new")
        assert (len(again) < len(calls)) is (seconds == 0)
        assert_same(snapshot(layers.base / "results/whole"), snapshot(at / "new"), "resumed it is another one")


def _interrupted(layers: Union) -> tuple[list[str], Path, Path]:
    """The words of a flatten that was killed in its midst, its place and its half done work."""
    words = _words(layers, "flatten")
    calls = _finish(words, layers.base / "results/whole")
    new = layers.base / "results/out/new"
    new.parent.mkdir()
    assert _try(words, new, _number(calls, 0.6))[0] == -signal.SIGKILL
    (half,) = _beside(new.parent)
    return words, new, half


def test_the_work_of_others_is_refused(layers: Union) -> None:
    words, new, half = _interrupted(layers)
    low, low2, low3 = layers.low, layers.low2, layers.low3
    for other in (
        ("flatten", "--upper", layers.top, "--lower", f"{low2}:{low}:{low3}"),
        ("flatten", "--lower", f"{layers.top}:{low}:{low2}:{low3}"),
        ("flatten", "--upper", layers.top, "--lower", f"{low}:{low2}"),
        ("squash", "--upper", layers.top, "--lower", low, "--below", f"{low2}:{low3}"),
    ):
        done = command(*other, new)
        assert done.returncode == 2
        assert f"{half} is half done work for {new}, but with other layers" in done.stderr
    low3.rename(layers.base / "results/away")  # another directory at the same place
    shutil.copytree(layers.base / "results/away", low3, symlinks=True)
    assert command(*words, new).returncode == 2
    shutil.rmtree(low3)
    (layers.base / "results/away").rename(low3)
    (half / "state").write_text("what is no state")
    assert command(*words, new).returncode == 2
    shutil.rmtree(half)
    _finish(words, new)


def test_layers_that_have_changed_are_refused(layers: Union) -> None:
    words, new, half = _interrupted(layers)
    (first, *_) = sorted(path for path in (half / "tree").iterdir() if path.is_file())
    changed = next(
        branch / first.name for branch in (layers.top, layers.low, layers.low2) if (branch / first.name).exists()
    )
    changed.write_text("something else")
    done = command(*words, new)
    assert done.returncode == 1
    assert f"{first.name} is another one than when this work was begun" in done.stderr
    assert not half.exists()
    assert not new.exists()
    _finish(words, new)


def test_a_name_that_has_gone_is_refused(layers: Union) -> None:
    words, new, half = _interrupted(layers)
    (half / "tree/stranger").touch()
    done = command(*words, new)
    assert (done.returncode, "stranger is another one" in done.stderr) == (1, True)


def test_two_at_once(layers: Union) -> None:
    words = _words(layers, "flatten")
    calls = _finish(words, layers.base / "results/whole")
    said: list[subprocess.CompletedProcess[str]] = []

    def again() -> int:
        said.append(command(*words, layers.base / "results/new"))
        return 0

    assert _try(words, layers.base / "results/new", _number(calls, 0.5), again)[0] == 0
    assert said[0].returncode == 4
    assert "is being made at this moment" in said[0].stderr
    assert_same(snapshot(layers.base / "results/whole"), snapshot(layers.base / "results/new"), "it is another one")


def test_what_has_come_to_the_place_meanwhile_stays(layers: Union) -> None:
    words, new, half = _interrupted(layers)
    write(new / "precious")
    assert command(*words, new).returncode == 2
    assert (new / "precious").exists()
    shutil.rmtree(new)
    _finish(words, new)
    assert_same(snapshot(layers.base / "results/whole"), snapshot(new), "it is another one")
    assert not half.exists()


def test_a_full_disk_is_an_interruption_as_well(layers: Union) -> None:
    words = _words(layers, "flatten")
    _finish(words, layers.base / "results/whole")
    disk = layers.base / "results/disk"
    with mounted_at(disk, "mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk):
        done = command(*words, disk / "new")
        assert done.returncode == 1
        (half,) = _beside(disk)
        assert f"No space left on device; what is done is in {half}, and the same command goes on" in done.stderr
        run("mount", "-o", "remount,size=20m", disk)
        assert command(*words, disk / "new").returncode == 0
        assert_same(snapshot(layers.base / "results/whole"), snapshot(disk / "new"), "resumed it is another one")
