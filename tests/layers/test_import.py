"""`pyunion import` and `export`: images become directories that show what other tools unpack, and images again."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from tests.cli.command import clean_environment
from tests.harness import leaks
from tests.harness.arrivals import arrival
from tests.harness.files import append, as_user, is_whiteout, mark, run, write
from tests.harness.mounts import REPOSITORY, KernelMount, Layers, PyunionMount
from tests.harness.program import copy_program
from tests.harness.snapshot import Snapshot, assert_same, snapshot
from tests.harness.warm import pyunion as command
from tests.layers import handmade
from tests.layers.docker import LIMITS, Docker
from tests.layers.images import EPOCH, commit, umoci_unpack
from tests.podman.store import PROGRAMS, Store

_CONTAINERFILE = """\
FROM base
RUN echo built > /built && rm /data/null && chmod 700 /data/deep
COPY context /copied
RUN rm -r /copied/sub && mv /data /moved && ln /built /hard
RUN mkdir /data && echo again > /data/built
"""


def import_(image: Path | str, dest: Path, *options: str) -> list[Path]:
    """Run `pyunion import`; returns the layers, topmost first."""
    done = command("import", image, dest, *options)
    assert (done.returncode, done.stderr) == (0, "")
    return [Path(path) for path in done.stdout.strip().split(":")]


def shown(layers: list[Path], at: Path) -> Snapshot:
    """What the kernel and pyunion show of the layers, which must be the same. The root is no member of a layer."""
    at.mkdir(exist_ok=True)
    found = []
    for mount in (KernelMount(at), PyunionMount(at)):
        mount.start(Layers([*layers, *([] if len(layers) > 1 else [_empty(at)])]))
        found.append(snapshot(at))
        mount.stop()
    assert_same(found[0], found[1], "the layers show different trees (kernel | pyunion)")
    del found[0][b"."]
    return found[0]


def _empty(at: Path) -> Path:
    path = at.with_name("empty")
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(scope="module")
def _built(_can_mount: None) -> Iterator[tuple[Store, Path]]:
    scratch = leaks.make_scratch()
    store = Store(scratch / "store", PROGRAMS["pyunion"])
    try:
        store.base()
        write(scratch / "store/context/sub/file", "copied\n")
        write(scratch / "store/context/file", "copied\n")
        (scratch / "store/Containerfile").write_text(_CONTAINERFILE)
        build = ("bud", "--quiet", "--layers", "--isolation", "chroot", "--pull-never", "--network", "host")
        store.buildah(*build, "--tag", "built", store.home)
        store.buildah("push", "--quiet", "built", f"oci:{scratch}/built:t")
        yield store, scratch / "built"
        store.assert_nothing_left()
    finally:
        store.close()
        leaks.remove_scratch(scratch)


@pytest.fixture
def built(_built: tuple[Store, Path], scratch: Path) -> tuple[Store, Path]:
    """A layout with the image `t`, of several layers, as buildah makes it; and its storage."""
    shutil.copytree(_built[1], scratch / "built")
    return _built[0], scratch / "built"


def test_an_image_of_buildah(built: tuple[Store, Path], scratch: Path) -> None:
    layers = import_(f"{built[1]}:t", scratch / "dest")
    assert len(layers) == 5
    assert_same(shown(layers, scratch / "at"), umoci_unpack(built[1], "t"), "umoci unpacks another tree (ours | umoci)")


def test_changed_and_committed_and_loaded(built: tuple[Store, Path], scratch: Path) -> None:
    """The whole way: import, mount, change, commit, and load by podman; umoci shows what the mount showed."""
    store, layout = built
    layers = import_(f"{layout}:t", scratch / "dest")
    for name in ("upper", "work", "at"):
        (scratch / name).mkdir()
    mount = PyunionMount(scratch / "at")
    mount.start(Layers(layers, scratch / "upper", scratch / "work"))
    append(scratch / "at/etc/motd", "changed\n")
    (scratch / "at/moved").rename(scratch / "at/there")
    shutil.rmtree(scratch / "at/copied")
    os.link(write(scratch / "at/new/one", "linked"), scratch / "at/new/two")
    commit(scratch / "upper", "--oci-layout", f"{layout}:t", lowers=layers)
    expected = snapshot(scratch / "at")
    del expected[b"."]
    mount.stop()
    assert_same(expected, umoci_unpack(layout, "t"), "umoci unpacks another tree (mount | umoci)")
    assert_same(expected, shown(import_(f"{layout}:t", scratch / "dest"), scratch / "at"), "imported anew it differs")
    run("skopeo", "copy", f"oci:{layout}:t", f"oci-archive:{scratch}/archive.tar:t")
    loaded = store.podman("load", "--quiet", "--input", scratch / "archive.tar").split()[-1]
    seen = store.shell("cat /etc/motd; cat /there/one; ls /copied || echo gone", "--rm", image=loaded)
    assert seen.splitlines() == ["etc/motd of base", "changed", "data/one of base", "gone"]


def test_every_form_of_an_image(built: tuple[Store, Path], scratch: Path) -> None:
    layout = built[1]
    expected = import_(f"{layout}:t", scratch / "dest")
    forms = {
        "oci-archive": f"oci-archive:{scratch}/oci.tar:t",
        "docker-archive": f"docker-archive:{scratch}/docker.tar:name:t",
        "zstd": f"oci:{scratch}/zstd:t",
    }
    run("skopeo", "copy", f"oci:{layout}:t", forms["oci-archive"])
    run("skopeo", "copy", f"oci:{layout}:t", forms["docker-archive"])
    run("skopeo", "copy", "--dest-compress-format", "zstd", f"oci:{layout}:t", forms["zstd"])
    run("gzip", "--keep", scratch / "docker.tar")
    for number, image in enumerate(("oci.tar", "docker.tar", "docker.tar:name:t", "docker.tar.gz", "zstd")):
        layers = import_(f"{scratch}/{image}", scratch / f"dest{number}")
        assert [path.name for path in layers] == [path.name for path in expected], image
        for ours, theirs in zip(layers, expected, strict=True):
            left, right = snapshot(ours), snapshot(theirs)
            del left[b"."], right[b"."]
            assert_same(left, right, f"a layer of {image} is another one")


def test_an_image_of_docker(docker: Docker, scratch: Path) -> None:
    docker.shell("changed", "echo more >> /etc/motd; rm -r /old; mkdir /old; echo n > /old/n; rm /same; chmod 700 /d")
    docker("commit", "changed", "changed:t")
    docker("save", "--output", scratch / "saved.tar", "changed:t")
    docker("export", "--output", scratch / "exported.tar", "changed")
    found = shown(import_(scratch / "saved.tar", scratch / "dest"), scratch / "at")
    with tarfile.open(scratch / "exported.tar") as archive:
        expected = {os.fsencode(each.name.rstrip("/")): each for each in archive}
    init = (b"etc/hosts", b"etc/hostname", b"etc/resolv.conf", b"etc/mtab", b"dev", b"proc", b"sys", b".dockerenv")
    expected = {path: each for path, each in expected.items() if path not in init and path.split(b"/")[0] not in init}
    assert found.keys() == expected.keys()
    for path, member in expected.items():
        if member.isreg() or member.isdir():
            entry = found[path]
            assert (entry.mode, entry.uid, entry.size) == (member.mode & 0o7777, member.uid, member.size), path
    docker("rm", "changed")


# -- the store ----------------------------------------------------------------------------------------------------


def test_images_share_their_layers(scratch: Path) -> None:
    base, one, two = handmade.members("f: base"), handmade.members("one"), handmade.members("two")
    first = import_(handmade.layout(scratch / "first", [base, one]), scratch / "dest", "--name", "first")
    inode = first[-1].stat().st_ino
    second = import_(handmade.layout(scratch / "second", [base, two]), scratch / "dest", "--name", "second")
    swapped = import_(handmade.layout(scratch / "third", [one, base]), scratch / "dest", "--name", "third")
    assert first[-1] == second[-1]
    assert second[-1].stat().st_ino == inode
    assert not set(swapped) & {*first, *second}  # the same layers in another order are not the same
    assert len(list((scratch / "dest/layers").iterdir())) == 5
    assert sorted(path.name for path in (scratch / "dest/images").iterdir()) == [
        *("first.json", "second.json", "third.json"),
    ]


@pytest.mark.usefixtures("_can_mount")
def test_the_list_can_be_mounted_as_it_is(scratch: Path) -> None:
    image = handmade.layout(scratch / "image", [handmade.members("f: lower"), handmade.members("g: upper")])
    done = command("import", image, scratch / "a:b\\c")
    (scratch / "at").mkdir()
    mounted = command("mount", "--lower", done.stdout.strip(), scratch / "at")
    assert (mounted.returncode, mounted.stderr) == (0, "")
    assert sorted(path.name for path in (scratch / "at").iterdir()) == ["f", "g"]
    assert command("umount", scratch / "at").returncode == 0


def test_an_import_that_was_killed_is_forgotten(scratch: Path) -> None:
    """It is killed while it waits for the second half of a layer."""
    image = handmade.layout(scratch / "image", [handmade.members(*(f"f{n}: {n}" for n in range(6000)))])
    index = json.loads((image / "index.json").read_text())
    manifest = json.loads((image / "blobs/sha256" / index["manifests"][0]["digest"][7:]).read_text())
    blob = image / "blobs/sha256" / manifest["layers"][0]["digest"][7:]
    data = blob.read_bytes()
    blob.unlink()
    os.mkfifo(blob)
    (scratch / "dest/layers").mkdir(parents=True)
    importing = subprocess.Popen(
        [sys.executable, "-m", "pyunion", "import", image, scratch / "dest"], cwd=REPOSITORY, env=clean_environment()
    )
    with blob.open("wb", buffering=0) as pipe:
        pipe.write(data[: len(data) * 4 // 5])
        arrival(arrival(scratch / "dest/layers", ".pyunion-new-"), "f0")
        importing.send_signal(signal.SIGKILL)
        importing.wait()
    blob.unlink()
    blob.write_bytes(data)
    assert not list((scratch / "dest/images").iterdir())
    (layer,) = import_(image, scratch / "dest")
    assert list((scratch / "dest/layers").iterdir()) == [layer]
    assert len(list(layer.iterdir())) == 6000


def test_export_is_the_reverse(built: tuple[Store, Path], docker: Docker, scratch: Path) -> None:
    layers = import_(f"{built[1]}:t", scratch / "dest")
    expected = shown(layers, scratch / "at")
    for number in range(2):
        for out in (f"{scratch}/out{number}:x", f"{scratch}/out{number}.tar"):
            done = command("export", scratch / "dest", out, "--source-date-epoch", EPOCH)
            assert (done.returncode, done.stderr) == (0, "")
    assert (scratch / "out0.tar").read_bytes() == (scratch / "out1.tar").read_bytes()
    assert_same(snapshot(scratch / "out0", times=False), snapshot(scratch / "out1", times=False), "the bytes differ")
    images = (f"{built[1]}:t", f"{scratch}/out0:x")
    config = [json.loads(run("skopeo", "inspect", "--config", f"oci:{image}")) for image in images]
    assert config[0]["history"] == config[1]["history"]
    assert config[0]["config"] == config[1]["config"]
    again = shown(import_(f"{scratch}/out0:x", scratch / "again"), scratch / "at")
    for path, entry in again.items():
        assert entry._replace(mtime_ns=0) == expected[path]._replace(mtime_ns=0)
    loaded = built[0].podman("load", "--quiet", "--input", scratch / "out0.tar").split()[-1]
    assert built[0].shell("cat /built", "--rm", image=loaded) == "built"
    docker("load", "--input", scratch / "out0.tar")
    assert docker("run", "--rm", *LIMITS, "t:latest", "cat", "/built") == "built"


# -- what layers say ----------------------------------------------------------------------------------------------

_BASE = ("d/", "d/a: a", "d/b: b", "d/sub/", "d/sub/c: c", "file: file", "link -> d/a", "hard = file")
_ON_TOP = {
    "whiteouts": ("d/.wh.a", ".wh.file", "d/.wh.sub"),
    "opaque, last": ("d/", "d/new: new", "d/.wh..wh..opq"),
    "opaque, first": ("d/.wh..wh..opq", "d/new: new"),
    "a directory anew": (".wh.d", "d/", "d/new: new"),
    "a file becomes a directory": ("file/", "file/x: x"),
    "a directory becomes a file": (".wh.d", "d: file"),
    "parents that are not named": ("d/sub/new: new", "p/q/r: r"),
    "a link to a file below": ("more = file",),
    "a link to a file that is hidden then": ("d/more = d/a", "d/.wh.a"),
    "a link into a directory that is hidden then": ("d/more = d/sub/c", "d/sub/.wh..wh..opq"),
    "a whiteout of a file of the same layer": ("d/a: new", "d/.wh.a", "d/.wh.b", "d/b: new"),
    "marks of both kinds": ("d/.wh.a", "d/new: n", "d/.wh..wh..opq", "d/.wh.b", "d/sub/", "d/sub/new: n"),
    "whiteouts where nothing is": ("d/.wh.none", "new/", "new/.wh.a", "new/sub/", "new/sub/.wh.b"),
    "whiteouts below what is opaque": ("d/sub/", "d/sub/.wh.c", "d/sub/x: x", "d/.wh..wh..opq", "d/sub/.wh.y"),
    "a file, and then a directory": ("d: file", "d/", "d/new: new"),
    "named twice": ("x: one", "x: two", "y: one", "y/", "y/z: z"),
    "dots in names": ("./d/./new: new", "./other/", "...: dots"),
    "a symlink for a symlink": ("link -> /etc", "loop -> loop"),
}


@pytest.mark.usefixtures("_can_mount")
@pytest.mark.parametrize("top", _ON_TOP.values(), ids=_ON_TOP.keys())
def test_umoci_unpacks_the_same(scratch: Path, top: tuple[str, ...]) -> None:
    image = handmade.layout(scratch / "image", [handmade.members(*_BASE), handmade.members(*top)])
    ours = shown(import_(image, scratch / "dest"), scratch / "at")
    theirs = umoci_unpack(image, "t")
    for found in (ours, theirs):
        # umoci changes one tree, so that directories get new times, and links go from a file that overlayfs only hides
        for path, entry in found.items():
            found[path] = entry._replace(mtime_ns=0 if entry.kind == "directory" else entry.mtime_ns, nlink=0)
    assert_same(ours, theirs, "umoci unpacks another tree (ours | umoci)")


# -- images in other forms ----------------------------------------------------------------------------------------

_LAYERS = [handmade.members("a: a"), handmade.members("b: b")]


def _in_two_members(data: bytes) -> bytes:
    return handmade.gzipped(data[:700]) + handmade.gzipped(data[700:])


def _chunked(data: bytes) -> bytes:
    """Frames of zstd, and others that are to be passed over, as podman writes "zstd:chunked"."""
    skipped = bytes.fromhex("502a4d18") + struct.pack("<I", 20) + bytes(20)
    pack = zstandard.ZstdCompressor().compress
    return pack(data[:700]) + skipped + pack(data[700:]) + skipped


@pytest.mark.parametrize("pack", [_in_two_members, _chunked, bytes])
def test_layers_that_are_packed_in_another_way(scratch: Path, pack: handmade.Pack) -> None:
    top, low = import_(handmade.layout(scratch / "image", _LAYERS, pack=pack), scratch / "dest")
    assert ((top / "b").read_text(), (low / "a").read_text()) == ("b", "a")


def _platform(name: str) -> dict[str, object]:
    return {"platform": {"architecture": name, "os": "linux" if name != "unknown" else "unknown"}}


@pytest.mark.parametrize("depth", range(4))
def test_of_several_platforms_that_of_this_machine(scratch: Path, depth: int) -> None:
    """Named by the layout's index, by an index in that, or by one further down."""
    ours = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
    image = handmade.layout(scratch / "image", _LAYERS)
    described = [
        handmade.image(image, _LAYERS, {}) | _platform(ours),
        handmade.image(image, _LAYERS[:1], {"Env": ["A=other"]}) | _platform("riscv64"),
        handmade.image(image, [], {"Env": ["A=attestation"]}) | _platform("unknown"),
    ]
    for _ in range(depth):
        index = json.dumps({"schemaVersion": 2, "manifests": described}).encode()
        described = [handmade.put(image, index, "index.v1+json")]
    for order in (described, described[::-1]):
        handmade.index(image, *order)
        assert len(import_(image, scratch / "dest")) == 2


def test_images_without_a_name_have_their_digest(scratch: Path) -> None:
    image = handmade.layout(scratch / "image", _LAYERS)
    one, two = (handmade.image(image, layers, {}) for layers in (_LAYERS, _LAYERS[:1]))
    handmade.index(image, one, two)
    names = [str(each["digest"])[7:19] for each in (one, two)]
    done = command("import", image, scratch / "dest")
    assert done.returncode == 2
    assert all(name in done.stderr for name in names)
    assert len(import_(f"{image}:{names[0]}", scratch / "dest")) == 2
    assert len(import_(f"{image}:{names[1]}", scratch / "dest")) == 1


@pytest.mark.parametrize("link", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_an_archive_of_an_old_docker(scratch: Path, link: bytes) -> None:
    """Which has equal layers once, and the images that were saved without a name as well."""
    layers = [*_LAYERS, _LAYERS[0]]
    handmade.docker_archive(scratch / "saved.tar", layers, ["one:tag"], None, None, link=link)
    first, middle, last = import_(f"{scratch}/saved.tar:one:tag", scratch / "dest")
    assert [path.name for path in first.iterdir()] == [path.name for path in last.iterdir()] == ["a"]
    assert [path.name for path in middle.iterdir()] == ["b"]
    done = command("import", scratch / "saved.tar", scratch / "dest")
    assert (done.returncode, done.stderr.count(",")) == (2, 2)
    name = next(word for word in re.findall("[0-9a-f]{12}", done.stderr))
    import_(f"{scratch}/saved.tar:{name}", scratch / "dest")
    kept = json.loads((scratch / "dest/images" / f"{name}.json").read_text())
    assert kept["config"]["config"]["Env"] in (["NUMBER=1"], ["NUMBER=2"])


@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_what_fails_leaves_no_store(scratch: Path, there: bool) -> None:
    image = handmade.layout(scratch / "image", _LAYERS)
    if there:
        (scratch / "dest").mkdir()
    assert command("import", f"{image}:other", scratch / "dest").returncode == 2
    assert sorted(path.name for path in scratch.iterdir()) == (["dest", "image"] if there else ["image"])
    assert not there or not list((scratch / "dest").iterdir())


# -- marks --------------------------------------------------------------------------------------------------------


def test_marks_in_an_archive_are_those_of_a_union_inside(scratch: Path) -> None:
    def fill(archive: tarfile.TarFile) -> None:
        records = {"SCHILY.xattr.trusted.overlay.opaque": "y", "SCHILY.xattr.user.text": "words"}
        handmade.add(archive, "d", type=tarfile.DIRTYPE, mode=0o755, pax_headers=records)

    (layer,) = import_(handmade.layout(scratch / "image", [handmade.layer(fill)]), scratch / "dest")
    assert mark(layer / "d", "opaque") is None
    assert mark(layer / "d", "overlay.opaque") == b"y"
    assert os.getxattr(layer / "d", "user.text") == b"words"


def test_a_user_imports_with_marks_of_his_own(scratch: Path) -> None:
    image = handmade.layout(
        scratch / "image", [handmade.members(*_BASE), handmade.members("d/.wh.a", "new/", "d/sub/.wh..wh..opq")]
    )
    program = copy_program(scratch / "program")
    (scratch / "home").mkdir()
    os.chown(scratch / "home", 1000, 1000)
    script = f'cd / && PYTHONPATH="$0" {program} import "$1" "$2"'
    said = as_user("sh", "-c", script, scratch / "program", image, scratch / "home/dest")
    top, lower = [Path(path) for path in said.splitlines()[0].split(":")]
    assert (lower / "d/a").stat().st_uid == 1000
    assert is_whiteout(top / "d/a")
    assert os.getxattr(top / "d/sub", "user.overlay.opaque") == b"y"


# -- memory -------------------------------------------------------------------------------------------------------

_MEASURED = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


def test_memory_does_not_grow_with_a_layer(scratch: Path) -> None:
    (scratch / "upper").mkdir()
    with (scratch / "upper/big").open("wb") as file:
        for _ in range(300):
            file.write(os.urandom(1 << 20))
    commit(scratch / "upper", "--oci-layout", f"{scratch}/image", "--compression", "zstd")
    arguments = ("import", scratch / "image", scratch / "dest")
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, sys.executable, "-m", "pyunion", *arguments],
        cwd=REPOSITORY, env=clean_environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout.split()[-1]) < 100 << 10  # KiB
