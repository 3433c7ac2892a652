"""`pyunion commit`: an upper branch becomes a layer that shows the same tree, to the kernel and other tools too."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from pyunion.cli import main
from tests.cli.command import clean_environment
from tests.harness.arrivals import arrival, arrivals
from tests.harness.files import append, make_opaque, make_whiteout, mark, run, write
from tests.harness.mounts import REPOSITORY, KernelMount, Layers
from tests.harness.snapshot import assert_same, snapshot
from tests.harness.union import Union
from tests.harness.warm import pyunion as command
from tests.layers.changes import change, fill
from tests.layers.docker import LIMITS, Docker
from tests.layers.images import EPOCH, commit, commit_all, manifest, names, shown, top_layer, umoci_unpack
from tests.podman.store import PROGRAMS, Store


def _more(at: Path) -> None:
    """What tar has to hold beside ordinary files."""
    os.link(write(at / "new/one", "linked"), at / "new/two")
    (at / "new/soft").symlink_to("nowhere")
    os.mkfifo(at / "new/pipe")
    os.mknod(at / "new/null", 0o20600, os.makedev(1, 3))
    write(at / "new" / ("long-" * 40), "long")
    write(at / "new" / "ünï", "text")
    write(at / "new" / os.fsdecode(b"bytes\xff"), "bytes")
    os.setxattr(at / "new/one", "user.text", b"value")
    os.setxattr(at / "new/one", "user.bytes", bytes(range(256)))
    os.setxattr(at / "new", "user.on-directory", b"=\n=")
    os.chown(at / "new/one", 123456, 7)
    (at / "new/one").chmod(0o4711)
    os.utime(at / "new/two", ns=(0, 1_234_567_890_123_456_789))
    with (at / "new/sparse").open("wb") as file:
        file.truncate(64 << 20)
        os.pwrite(file.fileno(), b"middle", 40 << 20)


@pytest.mark.parametrize("options", [(), ("metacopy=on",)], ids=["plain", "metacopy"])
def test_a_directory_shows_the_same_as_a_lower_branch(union: Union, options: tuple[str, ...]) -> None:
    fill(union)
    union.mount(*options)
    change(union.at)
    _more(union.at)
    before = snapshot(union.at)
    union.unmount()
    new = union.base / "new"
    commit(union.top, new)
    kernel = KernelMount(union.at)
    kernel.start(Layers([new, union.low, union.low2, union.low3]), ["metacopy=on"])
    assert_same(before, snapshot(union.at), "the layer shows another tree by the kernel (union | layer)")
    kernel.stop()
    shutil.rmtree(union.top)
    union.top.mkdir()
    union.mount(*options, lowers=[new, union.low, union.low2, union.low3], writable=False)
    assert_same(before, snapshot(union.at), "the layer shows another tree (union | layer)")
    assert (new / "new/sparse").stat().st_blocks < 1000


def test_what_serves_the_mount_alone_is_left_out(pyunion: Union) -> None:
    write(pyunion.low / "d/f", "f")
    pyunion.mount()
    append(pyunion.at / "d/f", "+")
    run("chattr", "+i", pyunion.at / "d/f")
    run("chattr", "+a", pyunion.at / "d")
    pyunion.unmount()
    assert mark(pyunion.top / "d/f", "origin") is not None
    assert (mark(pyunion.top / "d/f", "protattr"), mark(pyunion.top / "d", "protattr")) == (b"i", b"a")
    commit(pyunion.top, pyunion.base / "new")
    for path in (pyunion.base / "new").rglob("*"):
        assert [key for key in os.listxattr(path) if "overlay" in key] == []


@pytest.mark.parametrize("options", [(), ("metacopy=on",)], ids=["plain", "metacopy"])
def test_umoci_unpacks_the_same_tree(union: Union, options: tuple[str, ...]) -> None:
    fill(union)
    union.mount(*options)
    change(union.at)
    _more(union.at)
    before = shown(union)
    union.unmount()
    commit_all(union, union.base / "layout")
    assert_same(before, umoci_unpack(union.base / "layout", "all"), "umoci unpacks another tree (union | umoci)")


def test_marks_of_a_layer(pyunion: Union) -> None:
    for name in ("d/gone", "moved/f", "kept"):
        write(pyunion.low / name)
    make_whiteout(pyunion.top / "d/gone")
    make_opaque(pyunion.top / "anew")
    write(pyunion.top / "anew/f")
    (pyunion.top / "there").mkdir()
    os.setxattr(pyunion.top / "there", "trusted.overlay.redirect", b"moved")
    make_whiteout(pyunion.top / "moved")
    commit(pyunion.top, "--oci-layout", f"{pyunion.base}/layout:one", lowers=[pyunion.low])
    assert names(top_layer(pyunion.base / "layout", "one")) == [
        *("anew", "anew/.wh..wh..opq", "anew/f", "d", "d/.wh.gone", ".wh.moved"),
        *("there", "there/.wh..wh..opq", "there/f"),
    ]


def test_equal_input_gives_equal_bytes(pyunion: Union) -> None:
    write(pyunion.low / "moved/f", "f")
    pyunion.mount()
    (pyunion.at / "moved").rename(pyunion.at / "there")
    _more(pyunion.at)
    pyunion.unmount()
    copy = pyunion.base / "copy"
    run("cp", "--archive", "--sparse=always", pyunion.top, copy)
    for compression in ("gzip", "zstd", "none"):
        made = []
        for number, upper in enumerate((pyunion.top, copy)):
            layout = pyunion.base / f"{compression}{number}"
            options = ("--source-date-epoch", EPOCH, "--compression", compression)
            commit(pyunion.low, "--oci-layout", f"{layout}:t", *options)
            commit(upper, "--oci-layout", f"{layout}:t", *options, lowers=[pyunion.low])
            made.append(snapshot(layout, times=False))
        assert_same(made[0], made[1], f"with {compression} the bytes differ")


def test_no_time_is_later_than_asked_for(pyunion: Union) -> None:
    write(pyunion.top / "new")
    os.utime(write(pyunion.top / "old"), (1, 1))
    commit(pyunion.top, "--oci-layout", f"{pyunion.base}/layout", "--source-date-epoch", EPOCH)
    with tarfile.open(top_layer(pyunion.base / "layout", "latest")) as archive:
        assert {member.name: member.mtime for member in archive} == {"new": int(EPOCH), "old": 1}
    seen = json.loads(run("skopeo", "inspect", "--config", f"oci:{pyunion.base}/layout:latest"))
    assert seen["created"] == "2023-11-14T22:13:20Z"
    assert [entry["created"] for entry in seen["history"]] == ["2023-11-14T22:13:20Z"]


@pytest.mark.parametrize("ns", [-1, -500_000_000, -1_500_000_001, -3_000_000_000])
def test_times_before_1970(pyunion: Union, ns: int) -> None:
    os.utime(write(pyunion.top / "old"), ns=(0, ns))
    commit(pyunion.top, "--oci-layout", f"{pyunion.base}/layout:t")
    assert umoci_unpack(pyunion.base / "layout", "t")[b"old"].mtime_ns == ns
    commit(pyunion.top, pyunion.base / "new")
    assert (pyunion.base / "new/old").stat().st_mtime_ns == ns


def test_an_image_keeps_its_config_and_layers(pyunion: Union) -> None:
    layout = pyunion.base / "layout"
    write(pyunion.low / "f")
    write(pyunion.top / "g")
    commit(pyunion.low, "--oci-layout", f"{layout}:t")
    run("umoci", "config", "--image", f"{layout}:t", "--config.env", "A=b", "--config.workingdir", "/srv")
    before = manifest(layout, "t")
    commit(pyunion.top, "--oci-layout", f"{layout}:t")
    seen = json.loads(run("skopeo", "inspect", "--config", f"oci:{layout}:t"))
    assert (seen["config"]["Env"], seen["config"]["WorkingDir"]) == (["A=b"], "/srv")
    after = manifest(layout, "t")
    assert isinstance(after["layers"], list)
    assert isinstance(before["layers"], list)
    assert after["layers"][:-1] == before["layers"]
    assert {path.decode() for path in umoci_unpack(layout, "t")} == {"f", "g"}


# -- while it is mounted ------------------------------------------------------------------------------------------


def test_what_is_not_yet_in_upper_is_in_the_layer(pyunion: Union) -> None:
    pyunion.mount()
    with (pyunion.at / "file").open("wb") as file:
        file.write(b"x" * 100_000)
        file.flush()  # to the kernel, which keeps it
        commit(pyunion.top, pyunion.base / "new")
        commit(pyunion.top, "--oci-layout", f"{pyunion.base}/layout")
    assert (pyunion.base / "new/file").read_bytes() == b"x" * 100_000
    with tarfile.open(top_layer(pyunion.base / "layout", "latest")) as archive:
        assert archive.getmember("file").size == 100_000
    assert sorted(path.name for path in (pyunion.base / "layout").iterdir()) == ["blobs", "index.json", "oci-layout"]


@pytest.fixture
def written(union: Union) -> Union:
    for name in ("first", "second"):
        write(union.low / name, "000000000")
    for number in range(200):
        write(union.low / f"other{number}", "x" * 10_000)
    union.compare_with_kernel = False
    union.mount()
    for path in union.at.iterdir():
        append(path, "+")
    return union


@pytest.mark.parametrize("form", ["directory", "layout"])
def test_a_layer_is_of_one_moment(written: Union, form: str) -> None:
    """Whenever the copy of the first file begins, both are written, the first one first. There are 200 others between
    them, so that the second one is copied later."""
    files = [(written.at / name).open("r+b", buffering=0) for name in ("first", "second")]
    place = written.base / form
    place.mkdir()
    words = [place / "new"] if form == "directory" else ["--oci-layout", f"{place}:t", "--compression", "none"]
    command_line = [sys.executable, "-m", "pyunion", "commit", str(written.top), *map(str, words)]
    with subprocess.Popen(command_line, cwd=REPOSITORY, env=clean_environment()) as committing, ExitStack() as stack:
        for file in files:
            stack.enter_context(file)
        copy = arrival(place, ".pyunion-new-")
        begun = (name for name in arrivals(copy) if name == "first")
        for number, _ in zip(range(1, 6), begun, strict=False):
            for file in files:
                os.pwrite(file.fileno(), b"%09d" % number, 0)
    assert committing.returncode == 0
    if form == "layout":
        run("tar", "--extract", "--file", top_layer(place, "t"), "-C", place, "--one-top-level=new")
    first, second = (int((place / "new" / name).read_text()[:9]) for name in ("first", "second"))
    assert first - second in (0, 1)
    assert first, "nothing was written meanwhile, so that nothing was shown"


def test_a_branch_that_is_written_without_a_pause_is_refused(
    written: Union, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pause between two looks is when it is written, so that this does not depend on who gets the processors."""
    with (written.at / "first").open("r+b", buffering=0) as file:
        monkeypatch.setattr("pyunion.layers.snapshot.time.sleep", lambda _: os.pwrite(file.fileno(), b"more", 0))
        assert main(["commit", str(written.top), str(written.base / "new")]) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "is being written without a pause" in captured.err
    assert not (written.base / "new").exists()
    assert [path for path in written.base.iterdir() if path.name.startswith(".")] == []


# -- interrupted --------------------------------------------------------------------------------------------------


def _interrupted(written: Union, number: signal.Signals, *words: str | Path) -> int:
    """Run a commit that is told to end while it copies, and cannot be done, since it is written all the time."""
    command_line = [sys.executable, "-m", "pyunion", "commit", str(written.top), *map(str, words)]
    with (written.at / "first").open("r+b", buffering=0) as file:
        with subprocess.Popen(command_line, cwd=REPOSITORY, env=clean_environment()) as committing:
            place = written.base / "layout" if len(words) > 1 else written.base
            begun = arrivals(arrival(place, ".pyunion-new-"))
            for number_, _ in enumerate(name for name in begun if name == "first"):
                os.pwrite(file.fileno(), b"more", 0)
                if number_ == 1:
                    committing.send_signal(number)
                    break
        return committing.returncode


@pytest.mark.parametrize("form", ["directory", "layout"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_commit_that_is_interrupted_leaves_nothing_to_the_next(
    written: Union, number: signal.Signals, form: str
) -> None:
    layout = written.base / "layout"
    layout.mkdir()
    words = [written.base / "new"] if form == "directory" else ["--oci-layout", layout]
    assert _interrupted(written, number, *words) == (-9 if number == signal.SIGKILL else 128 + number)
    assert not (written.base / "new").exists()
    if number == signal.SIGKILL:
        commit(written.top, *words)
    blobs = [layout / "blobs/sha256"] if form == "layout" else []
    found = [path.name for folder in (written.base, layout, *blobs) for path in folder.iterdir()]
    assert [name for name in found if name.startswith(".")] == []


def test_what_others_are_making_stays(written: Union) -> None:
    """Two commits beside each other, of which the second one is done while the first one goes on."""
    file = (written.at / "first").open("r+b", buffering=0)
    command_line = [sys.executable, "-m", "pyunion", "commit", str(written.top), str(written.base / "new")]
    with subprocess.Popen(command_line, cwd=REPOSITORY, env=clean_environment()) as committing, file:
        copy = arrival(written.base, ".pyunion-new-")
        commit(written.low, written.base / "other")
        assert copy.exists() or (written.base / "new").exists()
    assert committing.returncode == 0
    assert (written.base / "new/second").exists()


# -- refusals -----------------------------------------------------------------------------------------------------


def test_nothing_that_is_there_is_replaced(pyunion: Union) -> None:
    write(pyunion.base / "new/precious")
    done = command("commit", pyunion.top, pyunion.base / "new")
    assert done.returncode == 2
    assert "is there already" in done.stderr
    assert (pyunion.base / "new/precious").exists()


@pytest.mark.parametrize("what", ["moved", "metadata", "mark"])
def test_what_an_oci_layer_cannot_say_is_refused(pyunion: Union, what: str) -> None:
    write(pyunion.low / "d/f", "data")
    pyunion.compare_with_kernel = False
    pyunion.mount("metacopy=on")
    if what == "moved":
        (pyunion.at / "d").rename(pyunion.at / "moved")
    elif what == "metadata":
        (pyunion.at / "d/f").chmod(0o600)
    else:
        write(pyunion.at / ".wh.mark")
    pyunion.unmount()
    done = command("commit", pyunion.top, "--oci-layout", pyunion.base / "layout")
    assert done.returncode == 1
    assert str(pyunion.top) in done.stderr
    assert json.loads((pyunion.base / "layout/index.json").read_text())["manifests"] == []
    assert list((pyunion.base / "layout/blobs/sha256").iterdir()) == []


# -- other tools --------------------------------------------------------------------------------------------------


def test_podman_and_docker_run_it(docker: Docker, scratch: Path) -> None:
    """An image of docker's layers, one of which holds a sparse file."""
    script = "echo more >> /etc/motd; rm -r /old; mkdir /old; echo n > /old/n; rm /same; ln /d/a /d/aa"
    docker.shell("one", script)
    upper, lower = docker.layers("one")
    _, base = lower.split(":")
    copy = scratch / "upper"
    run("cp", "--archive", upper, copy)
    with (copy / "sparse").open("wb") as file:
        file.truncate(64 << 20)
        os.pwrite(file.fileno(), b"middle", 40 << 20)
    layout = scratch / "layout"
    for branch in (Path(base), copy):
        commit(branch, "--oci-layout", f"{layout}:t")
    look = "cat /etc/motd; ls /old; test -e /same || echo gone; stat -c %h /d/a; md5sum < /sparse; stat -c %s /sparse"
    run("skopeo", "copy", f"oci:{layout}:t", f"docker-archive:{scratch}/docker.tar:made:t")
    docker("load", "--input", scratch / "docker.tar")
    by_docker = docker("run", "--rm", *LIMITS, "made:t", "/bin/sh", "-ec", look)
    run("skopeo", "copy", f"oci:{layout}:t", f"oci-archive:{scratch}/oci.tar:t")
    store = Store(scratch / "store", PROGRAMS["pyunion"])
    try:
        loaded = store.podman("load", "--quiet", "--input", scratch / "oci.tar").split()[-1]
        by_podman = store.podman("run", "--rm", loaded, "/bin/sh", "-ec", look)
    finally:
        store.close()
    digest = run("md5sum", copy / "sparse").split()[0]
    said = ["hello", "more", "n", "gone", "2", f"{digest}  -", str(64 << 20)]
    assert by_docker.splitlines() == said
    assert by_podman.splitlines() == said


_MEASURED = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_memory_does_not_grow_with_a_file(pyunion: Union, compression: str) -> None:
    with (pyunion.top / "big").open("wb") as file:
        for _ in range(300):
            file.write(os.urandom(1 << 20))
    arguments = ["commit", str(pyunion.top), "--oci-layout", f"{pyunion.base}/layout", "--compression", compression]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, sys.executable, "-m", "pyunion", *arguments],
        cwd=REPOSITORY, env=clean_environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout.split()[-1]) < 100 << 10  # KiB
