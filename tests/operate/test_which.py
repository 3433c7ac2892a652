"""`pyunion which` and `pyunion tree`: what the branches hold, and which of it the union shows."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pyunion.errors import ExitCode
from tests.harness.files import append, make_opaque, make_whiteout, run, write
from tests.harness.terminal import Job
from tests.harness.union import Union
from tests.harness.warm import pyunion as run_pyunion
from tests.operate.conftest import told


def _which(union: Union, path: str, *, shown: bool = True) -> list[tuple[str, ...]]:
    """For each branch: its path in short, what it has there, its part in it, and what hides it."""
    [found] = told("which", union.at / path, status=0 if shown else 1)
    assert found["shown"] is shown
    assert found["shown"] == os.path.lexists(union.at / path)
    return [_row(union, row) for row in found["branches"]]


def _row(union: Union, row: dict[str, Any]) -> tuple[str, ...]:
    def short(path: str) -> str:
        return str(Path(path).relative_to(union.base))

    words = [row["what"], *sorted(f"{name}={value}" for name, value in row["marks"].items())]
    cells = (short(row["branch"] + row["path"]), " ".join(words), row["part"])
    return cells if row["hidden_by"] is None else (*cells, short(row["hidden_by"]))


class Case(NamedTuple):
    """What the branches hold, and what is then said of a path."""

    make: Callable[[Union], object]
    path: str
    expected: list[tuple[str, ...]]
    shown: bool = True
    options: tuple[str, ...] = ()
    ours_only: bool = False  # marks that the kernel does not read


def _two_files(union: Union) -> None:
    write(union.low / "d/f", "1")
    write(union.low3 / "d/f", "3")


def _whiteout(union: Union) -> None:
    _two_files(union)
    make_whiteout(union.low2 / "d/f")


def _whiteout_on_top(union: Union) -> None:
    _two_files(union)
    make_whiteout(union.top / "d/f")


def _whiteout_of_directory(union: Union) -> None:
    _two_files(union)
    make_whiteout(union.top / "d")


def _opaque(union: Union) -> None:
    _two_files(union)
    make_opaque(union.low2 / "d")


def _opaque_of_root(union: Union) -> None:
    write(union.low / "d/e/f")
    write(union.low2 / "d/e/f")
    os.setxattr(union.low / "d", "user.overlay.opaque", b"y")


def _redirect(union: Union) -> None:
    write(union.low2 / "old/f")
    write(union.low2 / "new/g")
    (union.low / "new").mkdir()
    os.setxattr(union.low / "new", "trusted.overlay.redirect", b"old")
    make_whiteout(union.low / "old")


def _absolute_redirect(union: Union) -> None:
    write(union.low3 / "a/b/f")
    (union.low / "c/d").mkdir(parents=True)
    os.setxattr(union.low / "c/d", "trusted.overlay.redirect", b"/a/b")


def _file_over_directory(union: Union) -> None:
    write(union.low / "x")
    write(union.low2 / "x/f")


def _directory_over_file(union: Union) -> None:
    write(union.low / "x/f")
    write(union.low2 / "x")
    write(union.low3 / "x/g")


def _directory_over_whiteout(union: Union) -> None:
    write(union.low / "x/f")
    make_whiteout(union.low2 / "x")
    write(union.low3 / "x/g")


def _metacopy(union: Union) -> None:
    write(union.low2 / "f", "data")
    copy = write(union.low / "f")
    os.truncate(copy, 4)
    os.setxattr(copy, "trusted.overlay.metacopy", b"")


def _aufs(union: Union) -> None:
    _two_files(union)
    write(union.low2 / "d/.wh.f")


def _aufs_hides(union: Union) -> None:
    write(union.low / "d/.wh.f")
    write(union.low3 / "d/f", "3")


def _aufs_opaque(union: Union) -> None:
    write(union.low / "d/.wh..wh..opq")
    write(union.low2 / "d/f")


CASES = {
    "the topmost": Case(
        _two_files, "d/f", [("lower1/d/f", "file", "shown"), ("lower3/d/f", "file", "hidden", "lower1/d/f")]
    ),
    "a merged directory": Case(
        _two_files, "d", [("lower1/d", "directory", "shown"), ("lower3/d", "directory", "merged")]
    ),
    "a whiteout below": Case(
        _whiteout,
        "d/f",
        [
            ("lower1/d/f", "file", "shown"),
            ("lower2/d/f", "whiteout", "hidden", "lower1/d/f"),
            ("lower3/d/f", "file", "hidden", "lower1/d/f"),
        ],
    ),
    "a whiteout": Case(
        _whiteout_on_top,
        "d/f",
        [
            ("upper/d/f", "whiteout", "hides"),
            ("lower1/d/f", "file", "hidden", "upper/d/f"),
            ("lower3/d/f", "file", "hidden", "upper/d/f"),
        ],
        shown=False,
    ),
    "in a deleted directory": Case(
        _whiteout_of_directory,
        "d/f",
        [("lower1/d/f", "file", "hidden", "upper/d"), ("lower3/d/f", "file", "hidden", "upper/d")],
        shown=False,
    ),
    "below an opaque directory": Case(
        _opaque, "d/f", [("lower1/d/f", "file", "shown"), ("lower3/d/f", "file", "hidden", "lower2/d")]
    ),
    "an opaque directory": Case(
        _opaque,
        "d",
        [
            ("lower1/d", "directory", "shown"),
            ("lower2/d", "directory opaque=y", "merged"),
            ("lower3/d", "directory", "hidden", "lower2/d"),
        ],
    ),
    "opaque as rootless tools write it": Case(
        _opaque_of_root,
        "d/e/f",
        [("lower1/d/e/f", "file", "shown"), ("lower2/d/e/f", "file", "hidden", "lower1/d")],
        ours_only=True,
    ),
    "a renamed directory": Case(
        _redirect,
        "new",
        [
            ("lower1/new", "directory redirect=old", "shown"),
            ("lower2/new", "directory", "hidden", "lower1/new"),
            ("lower2/old", "directory", "merged"),
        ],
    ),
    "in a renamed directory": Case(_redirect, "new/f", [("lower2/old/f", "file", "shown")]),
    "what a renamed directory hides": Case(
        _redirect, "new/g", [("lower2/new/g", "file", "hidden", "lower1/new")], shown=False
    ),
    "where a renamed directory was": Case(
        _redirect, "old/f", [("lower2/old/f", "file", "hidden", "lower1/old")], shown=False
    ),
    "an absolute redirect": Case(
        _absolute_redirect,
        "c/d",
        [("lower1/c/d", "directory redirect=/a/b", "shown"), ("lower3/a/b", "directory", "merged")],
    ),
    "a file over a directory": Case(
        _file_over_directory,
        "x",
        [("lower1/x", "file", "shown"), ("lower2/x", "directory", "hidden", "lower1/x")],
    ),
    "in a directory under a file": Case(
        _file_over_directory, "x/f", [("lower2/x/f", "file", "hidden", "lower1/x")], shown=False
    ),
    "a directory over a file": Case(
        _directory_over_file,
        "x",
        [
            ("lower1/x", "directory", "shown"),
            ("lower2/x", "file", "hidden", "lower1/x"),
            ("lower3/x", "directory", "hidden", "lower2/x"),
        ],
    ),
    "a directory over a whiteout": Case(
        _directory_over_whiteout,
        "x",
        [
            ("lower1/x", "directory", "shown"),
            ("lower2/x", "whiteout", "hides"),
            ("lower3/x", "directory", "hidden", "lower2/x"),
        ],
    ),
    "a metadata-only copy": Case(
        _metacopy, "f", [("lower1/f", "file metacopy=y", "shown"), ("lower2/f", "file", "data")]
    ),
    ".wh. is a name": Case(
        _aufs, "d/.wh.f", [("lower2/d/.wh.f", "file", "shown")]
    ),
    ".wh. is a mark": Case(
        _aufs_hides,
        "d/f",
        [("lower1/d/.wh.f", "whiteout", "hides"), ("lower3/d/f", "file", "hidden", "lower1/d/.wh.f")],
        shown=False,
        options=("aufs",),
        ours_only=True,
    ),
    ".wh..wh..opq": Case(
        _aufs_opaque,
        "d/f",
        [("lower2/d/f", "file", "hidden", "lower1/d")],
        shown=False,
        options=("aufs",),
        ours_only=True,
    ),
    "nowhere": Case(_two_files, "d/nope/deeper", [], shown=False),
    "a lower branch's own symlink": Case(
        lambda union: (union.low / "l").symlink_to("/"), "l", [("lower1/l", "symlink", "shown")]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_which(pyunion: Union, case: Case) -> None:
    case.make(pyunion)
    pyunion.compare_with_kernel = not case.ours_only
    pyunion.mount(*case.options)
    assert _which(pyunion, case.path, shown=case.shown) == case.expected


def test_after_changes_through_the_mount(pyunion: Union) -> None:
    write(pyunion.low / "dir/file")
    write(pyunion.low / "dir/other")
    write(pyunion.low2 / "gone/file")
    pyunion.mount()
    append(pyunion.at / "dir/file", "x")
    (pyunion.at / "gone/file").unlink()
    (pyunion.at / "gone").rmdir()
    (pyunion.at / "gone").mkdir()
    (pyunion.at / "dir").rename(pyunion.at / "moved")
    assert _which(pyunion, "moved/file") == [
        ("upper/moved/file", "file origin=y", "shown"),
        ("lower1/dir/file", "file", "hidden", "upper/moved/file"),
    ]
    assert _which(pyunion, "moved/other") == [("lower1/dir/other", "file", "shown")]
    assert _which(pyunion, "gone") == [
        ("upper/gone", "directory opaque=y", "shown"),
        ("lower2/gone", "directory", "hidden", "upper/gone"),
    ]


def test_a_name_of_a_linked_file_that_was_changed_under_another(pyunion: Union) -> None:
    write(pyunion.low / "a", "x")
    (pyunion.low / "b").hardlink_to(pyunion.low / "a")
    pyunion.compare_with_kernel = False  # with upper as a lower branch it counts the index's link, too
    pyunion.mount()
    append(pyunion.at / "a", "y")
    [found] = told("which", pyunion.at / "b")
    assert [(row["role"], row["part"]) for row in found["branches"]] == [("index", "shown"), ("lower", "hidden")]
    assert (pyunion.at / "b").read_text() == "xy", "which is what the union says, too"


def test_several_paths_and_the_sentences(pyunion: Union) -> None:
    _whiteout_on_top(pyunion)
    pyunion.mount()
    done = run_pyunion("which", pyunion.at / "d/f", pyunion.at / "d", pyunion.at)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"{pyunion.at}/d/f: not in the union",
        f"  upper  {pyunion.top}/d/f   whiteout  hides what is below",
        f"  lower  {pyunion.low}/d/f  file      hidden by the whiteout {pyunion.top}/d/f",
        f"  lower  {pyunion.low3}/d/f  file      hidden by the whiteout {pyunion.top}/d/f",
        f"{pyunion.at}/d: directory, from {pyunion.top} (upper)",
        f"  upper  {pyunion.top}/d   directory  shown",
        f"  lower  {pyunion.low}/d  directory  merged",
        f"  lower  {pyunion.low3}/d  directory  merged",
        f"{pyunion.at}: directory, from {pyunion.top} (upper)",
        f"  upper  {pyunion.top}/   directory  shown",
        f"  lower  {pyunion.low}/  directory  merged",
        f"  lower  {pyunion.low2}/  directory  merged",
        f"  lower  {pyunion.low3}/  directory  merged",
    ]


def test_by_symlinks_and_relative_paths(pyunion: Union) -> None:
    write(pyunion.low / "d/f")
    pyunion.mount()
    (pyunion.base / "link").symlink_to(pyunion.at / "d")
    done = run_pyunion("which", "link/../d/f", "--json", cwd=pyunion.base)
    assert done.returncode == ExitCode.FAILURE, "the shell's idea of `..`: link/../d/f is d/f beside the link"
    assert "lies in no union" in done.stderr
    [found] = told("which", pyunion.base / "link/f")
    assert [row["part"] for row in found["branches"]] == ["shown"]


def test_through_a_bind_mount_of_a_part(pyunion: Union) -> None:
    write(pyunion.low / "d/e/f")
    pyunion.mount()
    other = pyunion.base / "other"
    other.mkdir()
    run("mount", "--bind", pyunion.at / "d", other)
    try:
        [found] = told("which", other / "e/f")
        assert [row["path"] for row in found["branches"]] == ["/d/e/f"]
        assert "f  [lower1]" in run_pyunion("tree", other, "e").stdout
    finally:
        run("umount", other)


def test_a_branch_that_the_mount_covers(pyunion: Union) -> None:
    """The branches are those that the daemon has, and not what their paths lead to now."""
    write(pyunion.low / "f", "lower")
    write(pyunion.top / "f", "upper")
    pyunion.at.rmdir()
    pyunion.at.symlink_to(pyunion.top)
    pyunion.compare_with_kernel = False
    done = run_pyunion(
        "mount", "--lower", pyunion.low, "--upper", pyunion.top, "--work", pyunion.work, pyunion.top
    )
    assert done.returncode == 0, done.stderr
    try:
        assert _which(pyunion, "f") == [
            ("upper/f", "file", "shown"), ("lower1/f", "file", "hidden", "upper/f"),
        ]  # fmt: skip
    finally:
        assert run_pyunion("umount", pyunion.top).returncode == 0


def test_names_that_are_no_text(pyunion: Union) -> None:
    name = os.fsdecode(b"\xff\n\x1b[31m")
    write(pyunion.low / name)
    pyunion.mount()
    [found] = told("which", pyunion.at / name)
    assert found["branches"][0]["path"] == f"/{name}"
    for done in (run_pyunion("which", pyunion.at / name), run_pyunion("tree", pyunion.at)):
        assert r"\xff\n\x1b[31m" in done.stdout
        assert "\x1b" not in done.stdout


def test_a_path_in_no_union(scratch: Path) -> None:
    done = run_pyunion("which", scratch / "x")
    assert done.returncode == ExitCode.FAILURE
    assert done.stderr == f"pyunion: {scratch}/x lies in no union; name a path below the mount point of one\n"


# -- the tree -----------------------------------------------------------------------------------------------------


def _tree(*arguments: str | Path) -> list[str]:
    done = run_pyunion("tree", *arguments)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if not line.startswith("[")]


def test_the_tree(pyunion: Union) -> None:
    _redirect(pyunion)
    _whiteout_on_top(pyunion)
    write(pyunion.low3 / "d/z")
    write(pyunion.top / "d/new")
    pyunion.mount()
    assert _tree(pyunion.at) == [
        f"{pyunion.at}/  [upper + lower1 + lower2 + lower3]",
        "├── d/  [upper + lower1 + lower3]",
        "│   ├── new  [upper]",
        "│   └── z  [lower3]",
        "└── new/  [lower1 + lower2]",
        "    └── f  [lower2]",
    ]
    assert _tree(pyunion.at, "--depth", "1") == [
        f"{pyunion.at}/  [upper + lower1 + lower2 + lower3]",
        "├── d/  [upper + lower1 + lower3]",
        "└── new/  [lower1 + lower2]",
    ]
    assert _tree(pyunion.at, "new") == [f"{pyunion.at}/new/  [lower1 + lower2]", "└── f  [lower2]"]
    legend = run_pyunion("tree", pyunion.at).stdout.splitlines()[:4]
    assert legend == [f"[{path.name}] {path}" for path in (pyunion.top, pyunion.low, pyunion.low2, pyunion.low3)]


def test_the_tree_is_what_find_finds(pyunion: Union) -> None:
    for number in range(30):
        write((pyunion.low, pyunion.low2, pyunion.low3)[number % 3] / f"d{number % 4}/e{number % 5}/f{number}")
    pyunion.mount()
    for number in range(0, 30, 4):
        path = pyunion.at / f"d{number % 4}/e{number % 5}/f{number}"
        path.unlink() if number % 8 else append(path, "x")
    names = [line.rpartition("─ ")[2].partition("  [")[0].rstrip("/") for line in _tree(pyunion.at)[1:]]
    assert sorted(names) == sorted(run("find", pyunion.at, "-mindepth", "1", "-printf", "%f\n").split())


def test_a_renamed_directory_says_so(pyunion: Union) -> None:
    write(pyunion.low / "old/f")
    pyunion.mount()
    (pyunion.at / "old").rename(pyunion.at / "new")
    assert _tree(pyunion.at)[1:] == ["└── new/  [upper + lower1], is old below", "    └── f  [lower1]"]


_COLOURED = re.compile(r"\x1b\[(?:2;)?([0-9;]*)m([^\x1b]*)\x1b\[0m")


def _on_a_terminal(union: Union, **environment: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NO_COLOR", "FORCE_COLOR", "TERM", "COLORTERM"):
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        status, said = Job(["tree", union.at]).await_end()
    assert status == 0, said
    return said


@pytest.mark.parametrize(("kind", "count"), [("linux", 10), ("xterm-256color", 18)])
def test_each_branch_has_a_colour_of_its_own_on_a_terminal(pyunion: Union, kind: str, count: int) -> None:
    """And what comes from it has the same."""
    lowers = [pyunion.low / f"branch{number}" for number in range(count)]
    for lower in lowers:
        write(lower / f"of-{lower.name}")
    write(pyunion.top / "of-upper")
    pyunion.compare_with_kernel = False
    pyunion.mount(lowers=lowers)
    found = [(colour, text.strip()) for colour, text in _COLOURED.findall(_on_a_terminal(pyunion, TERM=kind))]
    legend = {text[1:].split("]")[0]: colour for colour, text in found if text.startswith("[") and "] /" in text}
    assert sorted(legend) == sorted(["upper", *(lower.name for lower in lowers)])
    assert len(set(legend.values())) == count + 1
    files = {text.removeprefix("of-"): colour for colour, text in found if text.startswith("of-")}
    assert files == legend


@pytest.mark.parametrize(
    ("environment", "sequences"),
    [({"TERM": "xterm-256color", "NO_COLOR": "1"}, {"\x1b[2m", "\x1b[0m"}), ({"TERM": "dumb"}, set())],
    ids=["NO_COLOR", "dumb"],
)
def test_no_colours_where_none_are_wanted(
    pyunion: Union, environment: dict[str, str], sequences: set[str]
) -> None:
    """What is dim stays so, as that is no colour."""
    write(pyunion.low / "f")
    pyunion.mount()
    assert set(re.findall(r"\x1b\[[^m]*m", _on_a_terminal(pyunion, **environment))) == sequences
    assert "\x1b" not in run_pyunion("tree", pyunion.at).stdout, "and none in a pipe"


def test_branches_of_one_name_are_told_apart(pyunion: Union) -> None:
    write(pyunion.low / "same/f")
    write(pyunion.low2 / "same/g")
    pyunion.mount(lowers=[pyunion.low / "same", pyunion.low2 / "same"], writable=False)
    assert _tree(pyunion.at)[1:] == ["├── f  [same#0]", "└── g  [same#1]"]


def test_deeper_than_a_path_may_be(pyunion: Union) -> None:
    depth = 1200
    pyunion.watch_lowers = pyunion.compare_with_kernel = False
    fd = os.open(pyunion.low, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deeper", dir_fd=fd)
        below = os.open("deeper", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    pyunion.mount()
    try:
        assert len(_tree(pyunion.at)) == depth + 1
    finally:
        pyunion.unmount()
        run("rm", "-rf", pyunion.low / "deeper")


def test_a_directory_that_is_none(pyunion: Union) -> None:
    write(pyunion.low / "f")
    pyunion.mount()
    for name in ("f", "nope"):
        done = run_pyunion("tree", pyunion.at, name)
        assert done.returncode == ExitCode.FAILURE
        assert done.stderr.startswith(f"pyunion: the union shows no directory {pyunion.at}/{name}; ")
