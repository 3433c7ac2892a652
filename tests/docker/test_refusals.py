"""What is no layer of overlay2, or no whole one: one sentence that says so, an exit status, nothing mounted.

The folders are made by hand, in the form in which Docker writes them (test_layers has Docker's own).
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from pyunion.errors import ExitCode
from tests.cli.command import pyunion
from tests.docker.conftest import Viewer
from tests.harness.mounts import mounted


@pytest.fixture
def overlay2(scratch: Path) -> Path:
    """With the base layer `low`, and on it the layer `top`."""
    home = scratch / "docker/overlay2"
    (home / "l").mkdir(parents=True)
    for name, short in {"low": "LOWLOWLOWLOWLOWLOWLOWLOWLO", "top": "TOPTOPTOPTOPTOPTOPTOPTOPTO"}.items():
        (home / name / "diff").mkdir(parents=True)
        (home / name / "diff" / name).touch()
        (home / name / "link").write_text(short)
        (home / "l" / short).symlink_to(f"../{name}/diff")
    (home / "top/work").mkdir()
    (home / "top/lower").write_text("l/LOWLOWLOWLOWLOWLOWLOWLOWLO")
    return home


# What is done in overlay2 before, the folder that is named, what the sentence says.
_NO_LAYERS = {
    "missing": ("", "nope", "Docker layer nope does not exist; `docker inspect"),
    "file": ("", "top/link", "Docker layer top/link is not a directory"),
    "below-a-file": ("", "top/link/x", "Docker layer top/link/x cannot be read as user 0: Not a directory"),
    "loop": ("ln -s loop loop", "loop", "Docker layer loop cannot be read as user 0: Too many levels"),
    "diff": ("", "top/diff", "top/diff is a part of a layer; name the folder above it, .*/overlay2/top$"),
    "short-link": ("", "l/TOPTOPTOPTOPTOPTOPTOPTOPTO", "is a part of a layer; name the folder above it, .*/top$"),
    "overlay2-itself": ("", ".", "is no layer of overlay2, which has `diff` and `link` in it"),
    "no-diff": ("rm -r top/diff", "top", "is no layer of overlay2, which has `diff` and `link` in it"),
    "no-link": ("rm top/link", "top", "is no layer of overlay2, which has `diff` and `link` in it"),
    "no-l": ("rm -r l", "top", "is no layer of overlay2, which has `diff` and `link` in it and `l` beside it"),
    "vfs": ("mkdir -p ../vfs/dir/id", "../vfs/dir/id", "belongs to Docker's storage driver vfs; only"),
    "overlay": ("mkdir -p ../overlay/id/root", "../overlay/id", "belongs to Docker's storage driver overlay; only"),
    "containerd": (
        "mkdir -p ../io.containerd.snapshotter.v1.overlayfs/snapshots/7/fs",
        "../io.containerd.snapshotter.v1.overlayfs/snapshots/7",
        "belongs to containerd's snapshotter overlayfs; only layers of overlay2",
    ),
    "dangling": ("rm -r low", "top", "is damaged: .*/l/LOW.*, a layer below it, leads to ../low/diff, which does not"),
    "no-short-link": ("rm l/LOW*", "top", "is damaged: .*/l/LOW.*, a layer below it, does not exist; let Docker"),
    "not-a-directory": ("rm -r low/diff; touch low/diff", "top", "is damaged: .*/l/LOW.* is not a directory; let"),
    "empty-lower": (": > top/lower", "top", "is damaged: its file `lower` has '' where l/SHORT should be"),
    "absolute-lower": ("echo -n /etc > top/lower", "top", "is damaged: its file `lower` has '/etc' where l/SHORT"),
    "climbing-lower": ("echo -n l/.. > top/lower", "top", "is damaged: its file `lower` has 'l/..' where l/SHORT"),
    "lower-is-folder": ("rm top/lower; mkdir top/lower", "top", "top cannot be read as user 0: Is a directory"),
}


@pytest.mark.parametrize("case", _NO_LAYERS)
def test_refusal(overlay2: Path, viewer: Viewer, case: str) -> None:
    script, folder, sentence = _NO_LAYERS[case]
    _refused(viewer, overlay2, script or ":", "--docker-layer", folder, sentence=sentence)


def test_who_may_not_look_into_docker_is_told_so(overlay2: Path, viewer: Viewer) -> None:
    overlay2.parent.chmod(0o710)
    become = 'set -- setpriv --reuid=1000 --regid=1000 --clear-groups --no-new-privs "$@"'
    sentence = "Docker layer .*/top cannot be read as user 1000: Permission denied"
    _refused(viewer, overlay2, become, "--docker-layer", overlay2 / "top", sentence=sentence)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--lower low/diff", "given twice, by --docker-layer and by --lower or -o lowerdir="),
        ("-o lowerdir=low/diff", "given twice, by --docker-layer and by --lower or -o lowerdir="),
        ("-o remount,ro", "a remount changes no branches; leave out --lower, --docker-layer"),
        ("--upper low", "the upper branch low needs a work directory"),
    ],
)
def test_what_does_not_go_together(overlay2: Path, viewer: Viewer, arguments: str, sentence: str) -> None:
    words = ("--docker-layer", "top", *arguments.split())
    _refused(viewer, overlay2, ":", *words, sentence=sentence, status=ExitCode.USAGE)


def _refused(
    viewer: Viewer,
    overlay2: Path,
    before: str,
    *arguments: str | Path,
    sentence: str,
    status: ExitCode = ExitCode.BRANCH,
) -> None:
    done = pyunion("mount", *arguments, viewer.at, before=before, cwd=overlay2)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert re.fullmatch(r"pyunion: .*\n", done.stderr), done.stderr
    assert re.search(sentence, done.stderr), done.stderr
    assert not [mount for mount in mounted() if mount.point == bytes(viewer.at)]


def test_layers_by_hand_are_read_like_docker_s(overlay2: Path, viewer: Viewer) -> None:
    """Without which the refusals above would show nothing."""
    for layer, names in {"top": ["low", "top"], "low": ["low"]}.items():
        viewer.mount(overlay2 / layer)
        assert sorted(os.listdir(viewer.at)) == names
        viewer.umount()


@pytest.mark.parametrize("name", ["a:b", "a,b", "a\\b", "ä\n", os.fsdecode(b"\xff")])
def test_folders_of_any_name(overlay2: Path, viewer: Viewer, name: str) -> None:
    moved = overlay2.rename(overlay2.with_name(name))
    viewer.mount(moved / "top")
    assert sorted(os.listdir(viewer.at)) == ["low", "top"]
    viewer.umount()


def test_as_many_layers_as_docker_allows(overlay2: Path, viewer: Viewer) -> None:
    """overlay.go has maxDepth = 128."""
    shorts = []
    for number in range(127):
        (overlay2 / f"n{number}/diff").mkdir(parents=True)
        (overlay2 / f"n{number}/diff/{number}").touch()
        (overlay2 / f"l/N{number}").symlink_to(f"../n{number}/diff")
        shorts.append(f"l/N{number}")
    (overlay2 / "top/lower").write_text(":".join([*shorts, "l/LOWLOWLOWLOWLOWLOWLOWLOWLO"]))
    viewer.mount(overlay2 / "top")
    assert len(os.listdir(viewer.at)) == 129
    viewer.umount()
