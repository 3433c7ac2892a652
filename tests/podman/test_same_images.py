"""Images that were made on pyunion hold what they hold when they are made on fuse-overlayfs."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.harness import leaks
from tests.harness.archives import Member
from tests.harness.snapshot import Snapshot, assert_same, snapshot
from tests.podman.store import PROGRAMS, Store

# A container's life: every kind of change that a layer can carry. Only a lower file of several links is left alone:
# fuse-overlayfs commits one that was appended to with zeros for what was written.
_CHANGES = """
echo more >> /etc/passwd
chmod 600 /data/deep/two
chown 12:34 /data/deep/er/three
rm /etc/motd
rm -r /old
mkdir /old && echo new > /old/other
mv /data/deep /data/deeper
mkdir -p /new/a/b && echo x > /new/a/b/c
ln /new/a/b/c /new/hard
ln -s /nowhere /new/soft
mkfifo /new/pipe
cp /data/suid /new/suid && chmod 6755 /new/suid
rm /data/owned && mkdir /data/owned
touch /etc/shells
"""
_CONTAINERFILE = """\
FROM base
RUN echo built > /built && rm /data/null
COPY context /copied
RUN rm -r /copied/sub && mv /data /moved
RUN mkdir /data && ln /built /data/built
WORKDIR /work/dir
"""


class Made(NamedTuple):
    """What one storage made of the same orders."""

    diff: list[str]
    committed: list[dict[str, Member]]
    built: list[dict[str, Member]]
    tree: Snapshot


def _make(store: Store) -> Made:
    store.base()
    store.shell(_CHANGES, "--name", "changed")
    diff = sorted(store.podman("diff", "changed").splitlines())
    store.podman("commit", "--quiet", "changed", "committed")
    context = store.home / "context"
    (context / "sub").mkdir(parents=True)
    (context / "file").write_text("copied\n")
    (context / "sub/file").write_text("copied\n")
    (store.home / "Containerfile").write_text(_CONTAINERFILE)
    store.podman("build", "--quiet", "--layers", "--tag", "built", "--network", "none", store.home)
    at = store.podman("image", "mount", "committed")
    tree = snapshot(Path(at), times=False)
    store.podman("image", "umount", "committed")
    made = Made(diff, store.layers("committed"), store.layers("built"), tree)
    store.podman("rm", "changed")
    store.assert_nothing_left()
    return made


@pytest.fixture(scope="module")
def made(_can_mount: None) -> dict[str, Made]:
    """The same sequence on both mount programs, once for all tests here."""
    found = {}
    for name, program in PROGRAMS.items():
        scratch = leaks.make_scratch()
        store = Store(scratch / "store", program)
        try:
            found[name] = _make(store)
        finally:
            store.close()
            leaks.remove_scratch(scratch)
    return found


def test_podman_diff(made: dict[str, Made]) -> None:
    assert made["pyunion"].diff == made["fuse-overlayfs"].diff
    assert {"D /etc/motd", "A /new", "C /etc/passwd", "D /data/deep", "A /data/deeper"} <= set(made["pyunion"].diff)


@pytest.mark.parametrize("image", ["committed", "built"])
def test_layers_hold_the_same(made: dict[str, Made], image: str) -> None:
    ours: list[dict[str, Member]] = getattr(made["pyunion"], image)
    theirs: list[dict[str, Member]] = getattr(made["fuse-overlayfs"], image)
    assert len(ours) == len(theirs)
    for number, (left, right) in enumerate(zip(ours, theirs, strict=True)):
        assert left == right, f"layer {number} of {image}"


def test_a_mounted_image_shows_the_same(made: dict[str, Made]) -> None:
    assert_same(made["pyunion"].tree, made["fuse-overlayfs"].tree, "the image differs (pyunion | fuse-overlayfs)")
    assert b"etc/motd" not in made["pyunion"].tree
    assert b"old/other" in made["pyunion"].tree
