"""Images of buildah and of dockerd go all the way: imported, run, changed, committed, and back to docker and podman.

What has changed is told alike by docker, podman and pyunion, and what all make of the committed image is the same tree.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import leaks
from tests.harness.files import run, write
from tests.harness.mounts import Layers, PyunionMount
from tests.harness.snapshot import Snapshot, assert_same, snapshot
from tests.harness.warm import pyunion as command
from tests.layers.docker import LIMITS, Docker, write_base
from tests.layers.images import commit, umoci_unpack
from tests.podman.store import PROGRAMS, Store

_CONTAINERFILE = """\
FROM base
COPY context /copied
RUN echo built > /built && rm /same && chmod 700 /d/sub && ln /built /hard
RUN rm -r /old && mkdir /old && echo again > /old/again
ENV COLOUR=blue
"""
# Changes of each kind, but for those of a lower file by one of its names: see docs/known-failures.md.
_CHANGES = """
echo more >> /etc/motd; : > /d/a
rm -r /replaced; mkdir /replaced; echo n > /replaced/n
rm /was-file; mkdir /was-file; echo y > /was-file/y
mkdir -p /new/a; echo b > /new/a/b; ln /new/a/b /new/hard; ln -s nowhere /new/soft; mkfifo /new/pipe
mv /kept/sub/k /kept/kk; rm /copied/file; rm -r /old; chmod 4755 /new/hard; chown 3:4 /copied/sub
"""
_LOOK = """
cat /etc/motd; ls /new; ls /replaced; test -e /old || echo gone; stat -c '%a %u:%g %h' /new/hard
stat -c '%a %u:%g' /copied/sub; echo $COLOUR
"""
_SAID = ["hello", "more", "a", "hard", "pipe", "soft", "n", "gone", "4755 0:0 2", "755 3:4", "blue"]


@pytest.fixture(scope="module")
def podman(_can_mount: None) -> Iterator[Store]:
    scratch = leaks.make_scratch()
    store = Store(scratch / "store", PROGRAMS["pyunion"])
    try:
        write_base(scratch / "base.tar")
        store.podman("import", "--quiet", scratch / "base.tar", "base")
        yield store
    finally:
        store.close()
        leaks.remove_scratch(scratch)


@pytest.fixture(params=["buildah", "dockerd"])
def layout(request: pytest.FixtureRequest, docker: Docker, podman: Store, scratch: Path) -> Path:
    """An OCI layout with the image `t`, as one of the two builds it; both engines have it as `built`."""
    write(scratch / "build/context/file", "copied\n")
    write(scratch / "build/context/sub/file", "copied\n")
    write(scratch / "build/Dockerfile", _CONTAINERFILE)
    made = scratch / "layout"
    if request.param == "buildah":
        build = ("bud", "--quiet", "--layers", "--isolation", "chroot", "--pull-never")
        podman.buildah(*build, "--network", "host", "--tag", "built", scratch / "build")
        podman.buildah("push", "--quiet", "built", f"oci:{made}:t")
        podman.buildah("push", "--quiet", "built", f"docker-archive:{scratch}/built.tar:built:latest")
        docker("load", "--input", scratch / "built.tar")
    else:
        docker("build", "--quiet", *LIMITS, "--tag", "built", scratch / "build")
        docker("save", "--output", scratch / "built.tar", "built")
        run("skopeo", "copy", f"docker-archive:{scratch}/built.tar", f"oci:{made}:t")
        podman.podman("load", "--quiet", "--input", scratch / "built.tar")
    return made


def _same_said(engine: Docker | Store, script: str, ours: set[str]) -> None:
    """An engine says the same of a script, but for what a container has of the engine itself."""
    said = []
    for words in ("true", script):
        if isinstance(engine, Docker):
            engine.shell("changed", words, image="built")
            said.append(set(engine("diff", "changed").splitlines()))
            engine("rm", "changed")
        else:
            engine.shell(words, "--name", "changed", image="localhost/built")
            said.append(set(engine.podman("diff", "changed").splitlines()))
            engine.podman("rm", "changed")
    assert said[1] - said[0] == ours - said[0]


def _without_root(found: Snapshot) -> Snapshot:
    del found[b"."]
    return found


def _exported(archive: Path, at: Path) -> Snapshot:
    """What docker says a container has, but for what is docker's own and for times."""
    at.mkdir()
    run("tar", "--extract", "--numeric-owner", "--same-permissions", "--file", archive, "--directory", at)
    return _as_docker_shows(_without_root(snapshot(at)))


def _is_dockers(path: bytes) -> bool:
    own = (b"etc/hosts", b"etc/hostname", b"etc/resolv.conf", b"etc/mtab", b".dockerenv")
    return path in own or path.split(b"/")[0] in (b"dev", b"proc", b"sys")


def _as_docker_shows(found: Snapshot) -> Snapshot:
    """Docker changes directories when it makes a container, and knows whole seconds only."""
    return {path: each._replace(mtime_ns=0) for path, each in found.items() if not _is_dockers(path)}


def test_the_whole_way(docker: Docker, podman: Store, layout: Path, scratch: Path) -> None:
    done = command("import", f"{layout}:t", scratch / "store")
    assert (done.returncode, done.stderr) == (0, "")
    layers = [Path(path) for path in done.stdout.strip().split(":")]
    for name in ("upper", "work", "at"):
        (scratch / name).mkdir()
    kept = ("--upper", scratch / "upper", "--work", scratch / "work")
    done = command("run", "--image", f"{scratch}/store:t", *kept, "--", "sh", "-ec", _CHANGES)
    assert (done.returncode, done.stderr) == (0, "")

    told = command("diff", "--upper", scratch / "upper", "--lower", ":".join(map(str, layers))).stdout.splitlines()
    assert {"A /kept/kk", "D /kept/sub/k", "C /etc/motd", "D /old"} <= set(told)
    for engine in (docker, podman):
        _same_said(engine, _CHANGES, set(told))

    before = json.loads(run("skopeo", "inspect", f"oci:{layout}:t"))
    commit(scratch / "upper", "--oci-layout", f"{layout}:t", lowers=layers)
    after = json.loads(run("skopeo", "inspect", f"oci:{layout}:t"))
    assert after["Layers"][:-1] == before["Layers"]
    assert after["Env"] == before["Env"]
    assert "COLOUR=blue" in after["Env"]

    run("skopeo", "copy", f"oci:{layout}:t", f"docker-archive:{scratch}/docker.tar:made:t")
    run("skopeo", "copy", f"oci:{layout}:t", f"oci-archive:{scratch}/oci.tar:t")
    docker("load", "--input", scratch / "docker.tar")
    loaded = podman.podman("load", "--quiet", "--input", scratch / "oci.tar").split()[-1]
    assert docker("run", "--rm", *LIMITS, "made:t", "/bin/sh", "-ec", _LOOK).splitlines() == _SAID
    assert podman.shell(_LOOK, "--rm", image=loaded).splitlines() == _SAID

    mount = PyunionMount(scratch / "at")
    mount.start(Layers([scratch / "upper", *layers]))
    shown = _without_root(snapshot(scratch / "at"))
    mount.stop()
    assert_same(shown, umoci_unpack(layout, "t"), "umoci unpacks another tree (pyunion | umoci)")
    at = Path(podman.podman("image", "mount", loaded))
    assert_same(shown, _without_root(snapshot(at)), "podman unpacks another tree (pyunion | podman)")
    podman.podman("image", "umount", loaded)
    docker("create", "--name", "made", "made:t", "/bin/sh")
    docker("export", "--output", scratch / "exported.tar", "made")
    docker("rm", "made")
    exported = _exported(scratch / "exported.tar", scratch / "exported")
    assert_same(_as_docker_shows(shown), exported, "docker unpacks another tree (pyunion | docker)")
