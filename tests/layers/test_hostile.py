"""Images that are damaged or want to do harm are refused with a sentence, and leave nothing."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.harness.files import as_user
from tests.harness.program import copy_program
from tests.harness.warm import pyunion as command
from tests.layers import handmade
from tests.layers.handmade import add


def refused(image: Path, dest: Path) -> str:
    """The sentence; nothing is left of the image."""
    done = command("import", image, dest)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pyunion: ")
    assert done.stderr.count("\n") == 1
    assert not dest.exists()
    return done.stderr


_LEADING_OUT = {
    "dots": ("../victim: x",),
    "dots further on": ("d/", "d/../../victim: x"),
    "absolute": ("{base}/victim: x",),
    "through a symlink": ("way -> {base}", "way/victim: x"),
    "through a symlink to a directory of the layer": ("d/", "way -> d", "way/victim: x"),
    "through a file": ("way: x", "way/victim: x"),
    "a hard link out": ("mine = ../victim",),
    "an absolute hard link": ("mine = {base}/victim",),
    "a hard link through a symlink": ("way -> {base}", "mine = way/victim"),
    "a hard link to a directory": ("d/", "mine = d"),
    "a hard link to nothing": ("mine = none",),
    "a whiteout of the parent": ("d/.wh...",),
    "a whiteout of nothing": ("d/.wh.",),
    "below a mark": (".wh.d/x: x",),
}


@pytest.mark.parametrize("members", _LEADING_OUT.values(), ids=_LEADING_OUT.keys())
def test_nothing_leads_out_of_a_layer(scratch: Path, members: tuple[str, ...]) -> None:
    victim = scratch / "victim"
    victim.write_text("precious")
    described = [text.replace("{base}", str(scratch)) for text in members]
    image = handmade.layout(scratch / "image", [handmade.members("lower: x"), handmade.members(*described)])
    said = refused(image, scratch / "dest")
    assert victim.read_text() == "precious"
    assert victim.stat().st_nlink == 1
    assert any(word in said for word in ("hostile", "is a link to", "ends within", "no tar archive"))
    assert sorted(path.name for path in scratch.iterdir()) == ["image", "victim"]


def test_a_symlink_of_a_layer_below_is_no_way_out(scratch: Path) -> None:
    """The directory hides the symlink, as in overlayfs."""
    image = handmade.layout(
        scratch / "image", [handmade.members(f"way -> {scratch}"), handmade.members("way/victim: x")]
    )
    done = command("import", image, scratch / "dest")
    assert done.returncode == 0
    assert not (scratch / "victim").exists()


def _raw(name: bytes = b"f", size: bytes = b"00000000000\0", kind: bytes = b"0") -> bytes:
    """A member's header, with the numbers as they are given."""
    head = name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + b"00000000000\0" + b" " * 8 + kind
    head = head.ljust(257, b"\0") + b"ustar\x0000"
    head = head.ljust(512, b"\0")
    return head[:148] + b"%06o\0 " % sum(head) + head[156:]


_BIG = (1 << 60).to_bytes(11, "big")
_NEGATIVE = b"\xff" * 11 + b"\x00"
_END = bytes(1024)
_DAMAGED = {
    "a size beyond the end": _raw(size=b"00000100000\0") + _END,
    "a size beyond all": _raw(size=b"\x80" + _BIG) + _END,
    "a negative size": _raw(size=_NEGATIVE, name=b"a") + _raw() + _END,
    "a header of a gigabyte": _raw(kind=b"x", size=b"10000000000\0") + bytes(8 << 20),
    "a name of a gigabyte": _raw(kind=b"L", size=b"10000000000\0") + bytes(8 << 20),
    "no header between members": _raw() + b"\1" * 512 + _raw() + _END,
    "a cut header": _raw() + _raw()[:300],
    "an unknown type": _raw(kind=b"Q") + _END,
    "no archive": b"words " * 1000,
    "nothing": b"",
}


@pytest.mark.parametrize("data", _DAMAGED.values(), ids=_DAMAGED.keys())
def test_a_damaged_archive(scratch: Path, data: bytes) -> None:
    refused(handmade.layout(scratch / "image", [data]), scratch / "dest")


def _sparse(table: str, realsize: int) -> Callable[[tarfile.TarFile], None]:
    def fill(archive: tarfile.TarFile) -> None:
        records = {"major": "1", "minor": "0", "name": "f", "realsize": str(realsize)}
        data = table.encode().ljust(512, b"\0") + b"x" * 1024
        headers = {f"GNU.sparse.{key}": each for key, each in records.items()}
        add(archive, "GNUSparseFile.0/f", data, pax_headers=headers)

    return fill


_TABLES = {
    "overlapping": ("2\n0\n512\n256\n512\n", 4096),
    "backwards": ("2\n2048\n512\n0\n512\n", 4096),
    "beyond the end": ("1\n4096\n512\n", 4096),
    "negative": ("1\n-512\n512\n", 4096),
    "negative length": ("1\n512\n-512\n", 4096),
    "no numbers": ("1\nx\ny\n", 4096),
    "more data than there are": ("1\n0\n1048576\n", 1 << 20),
}


@pytest.mark.parametrize(("table", "size"), _TABLES.values(), ids=_TABLES.keys())
def test_a_sparse_file_that_cannot_be(scratch: Path, table: str, size: int) -> None:
    refused(handmade.layout(scratch / "image", [handmade.layer(_sparse(table, size))]), scratch / "dest")


def test_a_sparse_file_that_can_be(scratch: Path) -> None:
    image = handmade.layout(scratch / "image", [handmade.layer(_sparse("2\n4096\n512\n1048576\n512\n", 1 << 40))])
    done = command("import", image, scratch / "dest")
    assert done.returncode == 0
    file = Path(done.stdout.strip()) / "f"
    assert file.stat().st_size == 1 << 40
    assert file.stat().st_blocks < 100
    with file.open("rb") as opened:
        assert os.pread(opened.fileno(), 514, 1048575) == b"\0" + b"x" * 512 + b"\0"


def test_more_than_there_is_space(scratch: Path) -> None:
    """A petabyte of data, which compress well."""
    data = _raw(size=b"\x80" + (1 << 50).to_bytes(11, "big")) + bytes(1 << 20)
    assert "there is not so much space" in refused(handmade.layout(scratch / "image", [data]), scratch / "dest")


@pytest.mark.parametrize("number", [(0, 0), (1, 3)], ids=["whiteout", "null"])
def test_devices(scratch: Path, number: tuple[int, int]) -> None:
    def fill(archive: tarfile.TarFile) -> None:
        add(archive, "device", type=tarfile.CHRTYPE, devmajor=number[0], devminor=number[1])

    image = handmade.layout(scratch / "image", [handmade.layer(fill)])
    if number == (0, 0):
        assert "is a whiteout of overlayfs" in refused(image, scratch / "dest")
        return
    assert command("import", image, scratch / "dest").returncode == 0
    program = copy_program(scratch / "program")
    (scratch / "home").mkdir()
    os.chown(scratch / "home", 1000, 1000)
    script = f'cd / && PYTHONPATH="$0" {program} import "$1" "$2"; echo "status $?"'
    said = as_user("sh", "-c", script, scratch / "program", image, scratch / "home/dest")
    assert "is a device, which only root can make" in said
    assert "status 1" in said
    assert os.listdir(scratch / "home") == []


# -- digests ------------------------------------------------------------------------------------------------------


@pytest.fixture
def image(scratch: Path) -> Path:
    return handmade.layout(scratch / "image", [handmade.members("lower: x"), handmade.members("upper: y")])


def _manifest(image: Path) -> tuple[Path, dict[str, list[dict[str, str]]]]:
    index = json.loads((image / "index.json").read_text())
    path = _blob(image, index["manifests"][0]["digest"])
    return path, json.loads(path.read_text())


def _blob(image: Path, digest: str) -> Path:
    return image / "blobs/sha256" / digest.removeprefix("sha256:")


def test_a_layer_that_was_changed(image: Path, scratch: Path) -> None:
    blob = _blob(image, _manifest(image)[1]["layers"][1]["digest"])
    blob.write_bytes(gzip.compress(handmade.members("upper: z"), mtime=0))
    assert "a layer is damaged or was changed" in refused(image, scratch / "dest")


def test_a_layer_with_something_behind_it(image: Path, scratch: Path) -> None:
    blob = _blob(image, _manifest(image)[1]["layers"][1]["digest"])
    blob.write_bytes(blob.read_bytes() + gzip.compress(b""))
    assert "a layer is damaged or was changed: its digest" in refused(image, scratch / "dest")


def test_a_layer_that_was_cut(image: Path, scratch: Path) -> None:
    blob = _blob(image, _manifest(image)[1]["layers"][1]["digest"])
    blob.write_bytes(blob.read_bytes()[:-20])
    assert "damaged" in refused(image, scratch / "dest")


def test_a_layer_that_says_something_else_unpacked(image: Path, scratch: Path) -> None:
    """The blob is what the manifest says, and its content not what the config says."""
    other = handmade.layout(scratch / "other", [handmade.members("lower: x"), handmade.members("upper: z")])
    wrong = _manifest(other)[1]
    path, manifest = _manifest(image)
    manifest["layers"][1] = wrong["layers"][1]
    blob = _blob(other, wrong["layers"][1]["digest"])
    _blob(image, blob.name).write_bytes(blob.read_bytes())
    _replace(image, manifest)
    assert "the digest of what is in it" in refused(image, scratch / "dest")
    assert path.exists()


def _replace(image: Path, manifest: object) -> None:
    data = json.dumps(manifest).encode()
    index = json.loads((image / "index.json").read_text())
    digest = hashlib.sha256(data).hexdigest()
    index["manifests"][0] |= {"digest": f"sha256:{digest}", "size": len(data)}
    _blob(image, digest).write_bytes(data)
    (image / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("what", ["manifest", "config"])
def test_a_description_that_was_changed(image: Path, scratch: Path, what: str) -> None:
    path, manifest = _manifest(image)
    if what == "config":
        path = _blob(image, dict(manifest)["config"]["digest"])  # type: ignore[call-overload]
    path.write_bytes(path.read_bytes() + b" ")
    assert "is not what its digest says" in refused(image, scratch / "dest")


@pytest.mark.parametrize("digest", ["sha256:../../../../etc/passwd", "md5:0", "", None, 7])
def test_a_digest_that_is_none(image: Path, scratch: Path, digest: object) -> None:
    index = json.loads((image / "index.json").read_text())
    index["manifests"][0]["digest"] = digest
    (image / "index.json").write_text(json.dumps(index))
    assert "is no sha256 digest" in refused(image, scratch / "dest")


_JSON = {
    "nothing but brackets": "[" * 100_000,
    "a list": '["text"]',
    "manifests that are none": '{"manifests": "text"}',
    "a manifest that is a number": '{"manifests": [1]}',
    "annotations that are none": '{"manifests": [{"annotations": [1]}]}',
    "nothing": "",
}


@pytest.mark.parametrize("text", _JSON.values(), ids=_JSON.keys())
def test_an_index_that_is_none(image: Path, scratch: Path, text: str) -> None:
    (image / "index.json").write_text(text)
    refused(image, scratch / "dest")
    with tarfile.open(scratch / "saved.tar", "w") as archive:
        handmade.add(archive, "manifest.json", text.encode())
    refused(scratch / "saved.tar", scratch / "dest")


@pytest.mark.parametrize("manifest", [[], 1, {"config": 5}, {"layers": "x"}, {"manifests": [1]}, {"manifests": {}}])
def test_a_manifest_that_is_none(image: Path, scratch: Path, manifest: object) -> None:
    _replace(image, manifest)
    refused(image, scratch / "dest")


_CONFIGS = (
    *([1], "text", {"Env": 5}, {"Env": ["A=\0"]}, {"Env": ["A=\ud800"]}, {"User": 5}, {"User": "\0"}),
    *({"WorkingDir": ["/"]}, {"WorkingDir": "\0"}, {"Cmd": "text"}, {"Cmd": [["sh"]]}, {"Entrypoint": {"a": 1}}),
)


@pytest.mark.parametrize("config", _CONFIGS, ids=repr)
def test_a_program_that_cannot_be(scratch: Path, config: object) -> None:
    refused(handmade.layout(scratch / "image", [handmade.members("f: f")], config=config), scratch / "dest")


def test_what_is_no_image(scratch: Path) -> None:
    (scratch / "directory").mkdir()
    (scratch / "archive.tar").write_bytes(handmade.members("f: f"))
    for name in ("directory", "archive.tar"):
        refused(scratch / name, scratch / "dest")
