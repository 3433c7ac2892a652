"""Images of a union's branches, and what others unpack from them."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

from tests.harness.files import run
from tests.harness.snapshot import Snapshot, snapshot
from tests.harness.union import Union
from tests.harness.warm import pyunion

EPOCH = "1700000000"


def commit(upper: Path, *arguments: str | Path, lowers: list[Path] | None = None) -> str:
    """Run `pyunion commit`; returns what it prints."""
    below = ("--lower", ":".join(map(str, lowers))) if lowers else ()
    done = pyunion("commit", upper, *below, *arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.strip()


def commit_all(union: Union, layout: Path, *arguments: str) -> None:
    """All branches of a union as layers of the image `all`."""
    below: list[Path] = []
    for branch in (union.low3, union.low2, union.low, union.top):
        commit(branch, "--oci-layout", f"{layout}:all", *arguments, lowers=below)
        below = [branch, *below]


def umoci_unpack(layout: Path, tag: str) -> Snapshot:
    """What umoci makes of an image. The root is left out: it is no member of a layer."""
    bundle = layout.with_name(f"{layout.name}-bundle")
    run("umoci", "unpack", "--image", f"{layout}:{tag}", bundle)
    found = snapshot(bundle / "rootfs")
    del found[b"."]
    shutil.rmtree(bundle)
    return found


def shown(union: Union) -> Snapshot:
    """What the union shows, as far as a layer can hold it: a file's links outside of it do not count."""
    found = snapshot(union.at)
    del found[b"."]
    return found


def manifest(layout: Path, tag: str) -> dict[str, object]:
    index = json.loads((layout / "index.json").read_text())
    (found,) = [
        each for each in index["manifests"] if each["annotations"]["org.opencontainers.image.ref.name"] == tag
    ]
    return dict(json.loads(blob(layout, found["digest"]).read_text()))


def blob(layout: Path, digest: str) -> Path:
    return layout / "blobs/sha256" / digest.removeprefix("sha256:")


def top_layer(layout: Path, tag: str) -> Path:
    layers = manifest(layout, tag)["layers"]
    assert isinstance(layers, list)
    return blob(layout, layers[-1]["digest"])


def names(archive: Path) -> list[str]:
    with tarfile.open(archive) as members:
        return members.getnames()
