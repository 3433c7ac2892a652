"""A hard-linked lower file that was changed by one name: what the mount shows under the others, by the index, is what
`pyunion diff` lists, and what is in the layer that commit, flatten and squash make."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.files import append, touch_open, write
from tests.harness.mounts import KernelMount, Layers
from tests.harness.snapshot import Snapshot, assert_same, snapshot
from tests.harness.union import Union
from tests.harness.warm import pyunion as command
from tests.layers.images import commit, umoci_unpack
from tests.layers.test_diff import expected

OPTIONS = ("index=on", "redirect_dir=on")


def _contents(at: Path) -> None:
    append(at / "one", "+")


def _mode(at: Path) -> None:
    (at / "d/two").chmod(0o600)


def _by_two_names(at: Path) -> None:
    append(at / "one", "+")
    append(at / "d/two", "+")


def _moved(at: Path) -> None:
    append((at / "one").rename(at / "uno"), "+")


def _one_name_less(at: Path) -> None:
    append(at / "one", "+")
    (at / "d/two").unlink()


def _one_name_more(at: Path) -> None:
    append(at / "one", "+")
    os.link(at / "one", at / "four")


def _a_directory_moved(at: Path) -> None:
    append(at / "one", "+")
    (at / "e").rename(at / "f")


def _not_changed(at: Path) -> None:
    touch_open(at / "one", os.O_WRONLY)


def _only_removed(at: Path) -> None:
    (at / "one").unlink()


def _changed_and_removed(at: Path) -> None:
    append(at / "one", "+")
    (at / "one").unlink()


def _mode_and_removed(at: Path) -> None:
    (at / "one").chmod(0o600)
    (at / "one").unlink()


def _changed_and_replaced(at: Path) -> None:
    append(at / "one", "+")
    write(at / "new", "another").rename(at / "one")


def _removed_and_a_directory_moved(at: Path) -> None:
    _changed_and_removed(at)
    (at / "e").rename(at / "f")


def _with_the_times_of_before(at: Path) -> None:
    st = (at / "one").stat()
    write(at / "one", "2")
    os.utime(at / "one", ns=(st.st_atime_ns, st.st_mtime_ns))
    (at / "one").unlink()


_WITH_A_NAME = (
    *(_contents, _mode, _by_two_names, _moved, _one_name_less, _one_name_more, _a_directory_moved, _not_changed),
    _only_removed,
)
_WITHOUT = (_changed_and_removed, _changed_and_replaced, _removed_and_a_directory_moved)
Change = Callable[[Path], object]


class Seen:
    """What the mount shows before the change, and after it to whoever mounts it again."""

    def __init__(self, union: Union, change: Change, *options: str) -> None:
        write(union.low2 / "one", "1")
        write(union.low / "one-side/other")
        for name in ("d/two", "e/deep/three"):
            (union.low2 / name).parent.mkdir(parents=True)
            os.link(union.low2 / "one", union.low2 / name)
        self.lowers = [union.low, union.low2]
        union.compare_with_kernel = False  # looking around gives names their links
        union.mount("index=on", writable=False, lowers=self.lowers)
        self.before = snapshot(union.at)
        union.unmount()
        self._options = (*OPTIONS, *options)
        union.mount(*self._options, lowers=self.lowers)
        change(union.at)
        union.unmount()

    def after(self, union: Union) -> Snapshot:
        union.mount(*self._options, lowers=self.lowers)
        try:
            return snapshot(union.at)
        finally:
            union.unmount()


def _named(union: Union) -> tuple[str | Path, ...]:
    return "--lower", f"{union.low}:{union.low2}", "--work", union.work


@pytest.mark.parametrize("change", [*_WITH_A_NAME, *_WITHOUT])
def test_every_name_of_a_changed_lower_file_is_listed(union: Union, change: Change) -> None:
    """Whether upper has a link for it, or the index makes it a name of the copy."""
    seen = Seen(union, change)
    with_work = () if change in _WITH_A_NAME else ("--work", union.work)
    done = command("diff", "--upper", union.top, "--lower", f"{union.low}:{union.low2}", *with_work)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == expected(_told(seen.before), _told(seen.after(union)))
    again = command("diff", "--upper", union.top, *_named(union))
    assert (again.returncode, again.stdout, again.stderr) == (0, done.stdout, "")


_CASES = [(change, ()) for change in (*_WITH_A_NAME, *_WITHOUT, _with_the_times_of_before)]
_WITH_METACOPY = [(change, ("metacopy=on",)) for change in (_mode, *_WITHOUT, _mode_and_removed)]


@pytest.mark.parametrize(("change", "options"), [*_CASES, *_WITH_METACOPY])
def test_a_layer_has_every_name(union: Union, change: Change, options: tuple[str, ...]) -> None:
    """As a directory to the kernel, unpacked by umoci, squashed, and flat. Nobody has looked at the other names."""
    seen = Seen(union, change, *options)
    new, squashed, layout = (union.base / name for name in ("new", "squashed", "layout"))
    commit(union.top, new, *_named(union))
    below: list[Path] = []
    for layer in reversed(seen.lowers):
        commit(layer, "--oci-layout", f"{layout}:t", lowers=below)
        below = [layer, *below]
    commit(union.top, "--oci-layout", f"{layout}:t", *_named(union))
    upper = ("--upper", union.top, "--work", union.work)
    run_quietly("squash", *upper, "--lower", union.low, "--below", union.low2, squashed)
    run_quietly("flatten", "--upper", union.top, *_named(union), union.base / "flat")
    after = seen.after(union)
    for layers in ([new, *seen.lowers], [squashed, union.low2], [union.base / "flat", union.low3]):
        kernel = KernelMount(union.at)
        kernel.start(Layers(layers), ["metacopy=on"])
        found = snapshot(union.at)
        kernel.stop()
        assert_same(_told(after), _told(found), f"{layers[0].name} shows another tree (union | layer)")
    unpacked = umoci_unpack(layout, "t")
    assert_same(_told(after, root=False), _told(unpacked), "umoci unpacks another tree (union | umoci)")


def run_quietly(*words: str | Path) -> None:
    done = command(*words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def _told(found: Snapshot, *, root: bool = True) -> Snapshot:
    """Without link counts: a layer says nothing of the names that a file below it has lost."""
    return {path: entry._replace(nlink=0) for path, entry in found.items() if root or path != b"."}


def test_names_without_a_link_in_upper_are_links_of_each_other(pyunion: Union) -> None:
    Seen(pyunion, _changed_and_removed)
    new, flat = pyunion.base / "new", pyunion.base / "flat"
    commit(pyunion.top, new, *_named(pyunion))
    run_quietly("flatten", "--upper", pyunion.top, *_named(pyunion), flat)
    for layer in (new, flat):
        assert (layer / "d/two").read_text() == "1+"
        assert (layer / "d/two").stat().st_nlink == 2
        assert (layer / "d/two").samefile(layer / "e/deep/three")


@pytest.mark.parametrize("options", [(), ("ro",)], ids=["writable", "ro"])
def test_of_a_mounted_union_the_index_is_known(union: Union, options: tuple[str, ...]) -> None:
    seen = Seen(union, _changed_and_removed)
    union.mount(*OPTIONS, *options, lowers=seen.lowers)
    lower = f"{union.low}:{union.low2}"
    done = command("diff", "--upper", union.top, "--lower", lower)
    assert (done.returncode, done.stderr) == (0, "")
    assert {"C /d/two", "C /e/deep/three", "D /one"} <= set(done.stdout.splitlines())
    commit(union.top, union.base / "new", "--lower", lower)
    commit(union.top, "--oci-layout", f"{union.base}/layout", "--lower", lower)
    union.unmount()
    for name in ("d/two", "e/deep/three"):
        assert (union.base / "new" / name).read_text() == "1+"
    assert {path: entry.size for path, entry in umoci_unpack(union.base / "layout", "latest").items()} == {
        b"d": 0, b"d/two": 2, b"e": 0, b"e/deep": 0, b"e/deep/three": 2,
    }  # fmt: skip


_TOLD = [
    *(("nothing", words) for words in (["commit"], ["diff", "--upper"])),
    *(("work", words) for words in (["commit"], ["diff", "--upper"])),
    *(("lower", words) for words in (["commit"], ["diff", "--upper"], ["flatten", "--upper"], ["squash", "--upper"])),
]


@pytest.mark.parametrize(("given", "words"), _TOLD)
def test_what_cannot_be_known_is_told(pyunion: Union, given: str, words: list[str]) -> None:
    """Nobody gets a layer with old contents unawares. A diff tells what it can."""
    Seen(pyunion, _changed_and_removed)
    options = {"nothing": (), "lower": _named(pyunion)[:2], "work": _named(pyunion)[2:]}[given]
    new = () if words[0] == "diff" else (pyunion.base / "new",)
    done = command(*words, pyunion.top, *options, *new)
    assert (done.returncode, done.stderr.count("\n")) == (0 if words[0] == "diff" else 2, 1)
    assert ("--work" if given != "work" else "--lower") in done.stderr
    assert ("D /one" in done.stdout) == (words[0] == "diff")
    assert not (pyunion.base / "new").exists()


def test_the_work_directory_of_another_upper_does_not_count(pyunion: Union) -> None:
    seen = Seen(pyunion, _changed_and_removed)
    other = pyunion.base / "upper-too"
    write(other / "d/file")
    commit(other, pyunion.base / "new", lowers=seen.lowers)
    assert [path.name for path in sorted((pyunion.base / "new").rglob("*"))] == ["d", "file"]


def test_what_is_no_work_directory_of_it(pyunion: Union) -> None:
    done = command("commit", pyunion.top, pyunion.base / "new", "--work", "/dev/shm")
    assert done.returncode == 6
    assert "two file systems" in done.stderr
    done = command("commit", pyunion.top, pyunion.base / "new", "--work", pyunion.base / "none")
    assert done.returncode == 6
    assert str(pyunion.base / "none") in done.stderr
