"""`pyunion diff` says what `docker diff` says, and what a look at the mount before and after tells."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import clean_environment
from tests.harness.files import append, write
from tests.harness.mounts import REPOSITORY
from tests.harness.snapshot import Entry, Snapshot, snapshot
from tests.harness.union import Union
from tests.harness.warm import pyunion
from tests.layers.changes import change, fill
from tests.layers.docker import Docker

_SCRIPTS = {
    "contents": "echo more >> /etc/motd; : >> /same; echo n > /d/new; cp /d/a /d/sub/a",
    "removal": "rm /old/o; rm -r /d/sub; rm /tmp/t",
    "nothing": "cat /etc/motd; touch /kept/sub/z; rm /kept/sub/z",
    "attributes": "chmod 700 /d/sub; chmod 600 /etc/motd; chown 3:4 /kept; touch -d '2001-01-01 00:00' /d/a",
    "directories anew": "rm -r /replaced; mkdir /replaced; echo n > /replaced/n;"
    "rm -r /d/sub/deep; mkdir /d/sub/deep; echo c > /d/sub/deep/c; rm -r /old; mkdir /old",
    "types": "rm /was-file; mkdir /was-file; echo y > /was-file/y; rm -r /was-dir; echo f > /was-dir;"
    "rm /d/a; ln -s x /d/a; rm /same; mkfifo /same",
    "all new": "mkdir -p /new/a; echo b > /new/a/b; ln /new/a/b /new/hard; ln -s nowhere /new/s; mkfifo /new/p",
    "moves": "mv /d/a /kept/a; mv /kept/sub/k /kept/kk; mv /etc/motd '/etc/two words'",
}


def diff(upper: Path, *lowers: Path | str, options: tuple[str, ...] = ()) -> list[str]:
    below = ("--lower", ":".join(map(str, lowers))) if lowers else ()
    done = pyunion("diff", "--upper", upper, *below, *options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("script", _SCRIPTS.values(), ids=_SCRIPTS.keys())
def test_docker_says_the_same(docker: Docker, script: str) -> None:
    docker.shell("changed", script)
    try:
        upper, lower = docker.layers("changed")
        ours = diff(upper, lower)
        assert sorted(ours) == sorted(docker("diff", "changed").splitlines())
        assert [line.split(" ", 1)[1] for line in ours] == sorted(line.split(" ", 1)[1] for line in ours)
    finally:
        docker("rm", "changed")


def expected(before: Snapshot, after: Snapshot) -> list[str]:
    """By two looks at a mount: what came and went, what differs, and the directories where that is so."""
    said = dict.fromkeys(after.keys() - before.keys(), "A")
    gone = before.keys() - after.keys()
    said |= {path: "D" for path in gone if os.path.dirname(path) not in gone}
    said |= {path: "C" for path in after.keys() & before.keys() if _telling(before[path]) != _telling(after[path])}
    for path in list(said):
        while path := os.path.dirname(path):
            said.setdefault(path, "C")
    return sorted(f"{kind} /{os.fsdecode(path)}" for path, kind in said.items() if path != b".")


def _telling(entry: Entry) -> Entry:
    """A directory's times are those of its entries."""
    return entry._replace(mtime_ns=0) if entry.kind == "directory" else entry


@pytest.mark.parametrize("options", [(), ("metacopy=on",)], ids=["plain", "metacopy"])
def test_what_a_mount_shows_before_and_after(union: Union, options: tuple[str, ...]) -> None:
    fill(union)
    union.mount(*options)
    before = snapshot(union.at)
    change(union.at)
    after = snapshot(union.at)
    union.unmount()
    found = diff(union.top, union.low, union.low2, union.low3)
    assert sorted(found) == expected(before, after)
    assert {"A /merged/here/x/z", "D /moved", "A /only1/bus/ff", "C /merged/deep/g1"} <= set(found)


def test_without_lower_branches_origins_tell(union: Union) -> None:
    for name in ("d/kept", "d/changed", "d/gone", "d/touched"):
        write(union.low / name, name)
    union.mount()
    append(union.at / "d/changed", "+")
    (union.at / "d/gone").unlink()
    with (union.at / "d/kept").open("a"):
        pass
    (union.at / "d/touched").chmod(0o600)
    write(union.at / "d/new/file")
    union.unmount()
    assert (union.top / "d/kept").exists()
    assert diff(union.top) == ["C /d", "C /d/changed", "D /d/gone", "A /d/new", "A /d/new/file", "C /d/touched"]


def test_json_tells_more(union: Union) -> None:
    write(union.low / "file", "12345")
    write(union.low / "dir/f")
    write(union.low / "moved/f", "12")
    union.mount()
    append(union.at / "file", "678")
    shutil.rmtree(union.at / "dir")
    (union.at / "dir").symlink_to("elsewhere")
    (union.at / "moved").rename(union.at / "new")
    union.unmount()
    lines = diff(union.top, union.low, options=("--json",))
    found = {change["path"]: change for change in json.loads("\n".join(lines))}
    assert found["/file"] == {
        "kind": "C", "path": "/file", "type": "file", "was": "file",
        "size": 8, "size_was": 5, "what": ["content"],
    }
    assert found["/dir"] == {
        "kind": "C", "path": "/dir", "type": "symlink", "was": "directory", "what": ["type"],
    }  # fmt: skip
    assert found["/moved"] == {"kind": "D", "path": "/moved", "was": "directory"}
    assert found["/new"] == {"kind": "A", "path": "/new", "type": "directory", "redirect": "moved"}
    assert found["/new/f"] == {"kind": "A", "path": "/new/f", "type": "file", "size": 2}


_WATCH = """
import sys
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], bytes) and arguments[0].startswith(b"data"):
        sys.exit("opened " + repr(arguments))
sys.addaudithook(watch)
from pyunion.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_no_file_is_opened(union: Union) -> None:
    for name in ("data1", "d/data2", "d/data3", "moved/data4"):
        write(union.low / name, name)
    union.mount()
    append(union.at / "d/data2", "+")
    (union.at / "d/data3").chmod(0o600)
    (union.at / "moved").rename(union.at / "there")
    union.unmount()
    done = subprocess.run(
        [sys.executable, "-c", _WATCH, "diff", "--upper", union.top, "--lower", union.low],
        cwd=REPOSITORY, env=clean_environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "A /there/data4" in done.stdout


def test_names_are_shown_safely(scratch: Path) -> None:
    (scratch / "upper").mkdir()
    (scratch / "upper" / os.fsdecode(b"line\nbreak\xff")).touch()
    assert diff(scratch / "upper") == ["A /line\\nbreak\\xff"]


@pytest.mark.parametrize("words", [("diff", "--upper"), ("commit",), ("flatten", "--lower"), ("export",)], ids=str)
def test_a_branch_that_is_missing_or_no_directory(scratch: Path, words: tuple[str, ...]) -> None:
    write(scratch / "file")
    for name in ("none", "file"):
        new = () if words[0] == "diff" else (scratch / "new",)
        done = pyunion(*words, scratch / name, *new)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)
        assert str(scratch / name) in done.stderr
    assert os.listdir(scratch) == ["file"]
