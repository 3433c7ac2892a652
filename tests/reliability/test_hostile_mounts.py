"""Hostile branches through a mount: they are mounted, looked at, changed and removed, while strace watches the daemon.

Every path that the daemon gives to the kernel is a name below a descriptor, and every descriptor that it gets is of a
branch. It neither crashes nor hangs, lower branches stay as they are, and the log takes no control characters.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR, S_ISLNK, S_ISREG

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import leaks
from tests.harness.held import Client
from tests.harness.mounts import Layers, MountRefused, PyunionMount
from tests.harness.snapshot import assert_same, snapshot
from tests.reliability.hostile import BRANCHES, Thing, has_control_characters, index_entries, put, things
from tests.reliability.test_hostile_branches import leads_nowhere_else

EXAMPLES = max(20, settings().max_examples // 20)  # each is a mount
_DEEPEST = 40
_CALLS = "%file,open_by_handle_at,name_to_handle_at"
_TWO_PATHS = ("rename", "renameat", "renameat2", "link", "linkat")
_STRING = re.compile(r'(?<![\w<])"((?:[^"\\]|\\.)*)"')
_RESULT = re.compile(r" = \d+<(.*)>$")
# What Python reads when it imports, and what the daemon asks the kernel of itself and its callers.
_OWN = re.compile(
    rf"({re.escape(sys.prefix)}|{re.escape(sys.base_prefix)}/lib/python|{re.escape(str(Path(__file__).parents[2]))}/pyunion)"
    r"|/proc/\d+/(status|task|fdinfo)|/proc/self/(mountinfo|task)|/dev/fuse"
)


@contextmanager
def watched(pid: int, into: Path) -> Iterator[None]:
    """Have strace write what a process does; descriptors are shown with what they are of."""
    command = ["strace", "-f", "-y", "-xx", "-s", "4096", "-e", f"trace={_CALLS}", "-o", str(into), "-p", str(pid)]
    strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert strace.stderr is not None
        assert "attached" in strace.stderr.readline()
        yield
    finally:
        strace.send_signal(signal.SIGINT)
        strace.communicate()


def strange(trace: Path, branches: list[bytes]) -> list[str]:
    """The calls that have, or get, something that is in no branch."""
    return [line for line in trace.read_text().splitlines() if _is_strange(line, branches)]


def _is_strange(line: str, branches: list[bytes]) -> bool:
    named = [_decoded(text) for text in _STRING.findall(line)]
    if named and _OWN.match(os.fsdecode(named[0])):
        return False
    call = line.split("(")[0].split()[-1]
    # in others what comes after a path is a value
    paths = named if call in _TWO_PATHS else named[1:] if call.startswith("symlink") else named[:1]
    got = _RESULT.search(line)
    return any(not leads_nowhere_else(os.fsdecode(path)) for path in paths) or (
        got is not None and not _is_inside(_decoded(got.group(1)), branches)
    )


def _decoded(text: str) -> bytes:
    return bytes.fromhex(re.sub(r"\\x(..)", r"\1", text)) if text.startswith("\\x") else text.encode()


def _is_inside(path: bytes, branches: list[bytes]) -> bool:
    """A lower branch is a mount of its own that is nowhere: its paths begin at its root."""
    path = path.removesuffix(b" (deleted)")
    return any(path.startswith(branch) or os.path.lexists(branch + path) for branch in branches)


def use(at: bytes) -> None:
    """Look at everything, change it, move it, and remove it, as far as it lets itself be."""
    _walk(at, 0)
    for where, directories, names in os.walk(at, topdown=False):
        for name in (*directories, *names):
            with suppress(OSError):
                os.rename(os.path.join(where, name), os.path.join(where, b"moved"))
                os.rename(os.path.join(where, b"moved"), os.path.join(where, name))
            path = os.path.join(where, name)
            with suppress(OSError):
                (os.rmdir if S_ISDIR(os.lstat(path).st_mode) else os.unlink)(path)
    with suppress(OSError):
        os.mkdir(at + b"/new")


def _walk(directory: bytes, depth: int) -> None:
    assert depth < _DEEPEST, "a redirect makes a tree without an end"
    names: list[bytes] = []
    with suppress(OSError):
        names = os.listdir(directory)
    for name in (*names, b"a", b"b", b"outside"):
        path = os.path.join(directory, name)
        with suppress(OSError):
            mode = os.lstat(path).st_mode
            os.listxattr(path, follow_symlinks=False)
            if S_ISDIR(mode):
                _walk(path, depth + 1)
                os.mkdir(os.path.join(path, b"made"))
                os.setxattr(path, b"user.new", b"1")
            elif S_ISLNK(mode):
                os.readlink(path)
                os.lchown(path, 1, 1)
            elif S_ISREG(mode):
                with open(path, "rb+") as file:
                    assert file.read() in (b"", b"inside")
                    file.write(b"")
                os.chmod(path, 0o600)
                os.link(path, path + b"x")


@given(made=things, index=index_entries, metacopy=st.booleans())
@settings(max_examples=EXAMPLES)
def test_hostile_branches_through_a_mount(
    made: list[Thing], index: dict[bytes, tuple[str, dict[bytes, bytes]]], metacopy: bool
) -> None:
    base = leaks.make_scratch()
    try:
        (base / "outside").write_text("outside")
        layers = [base / f"branch{number}" for number in range(BRANCHES)]
        for layer in (*layers, base / "work/index", base / "union"):
            layer.mkdir(parents=True)
        for thing in made:
            thing.put(base)
        for name, (kind, marks) in index.items():
            put(os.fsencode(base / "work/index") + b"/" + name, kind, marks)
        _mount_and_use(base, layers, metacopy)
        assert (base / "outside").read_text() == "outside"
        assert (base / "outside").stat().st_nlink == 1
    finally:
        leaks.remove_scratch(base)


def _mount_and_use(base: Path, layers: list[Path], metacopy: bool) -> None:
    before = [snapshot(layer) for layer in layers[1:]]
    mount = PyunionMount(base / "union")
    mount.expect_complaints = True
    try:
        said = _start(mount, Layers(layers[1:-1], layers[0], base / "work", layers[-1:]), metacopy)
        if said is not None:
            assert said.startswith("pyunion: ")
            assert not has_control_characters(said)
            return
        with watched(mount.pid, base / "trace"):
            assert Client(lambda: use(os.fsencode(mount.point))).await_result() is None
        mount.stop()
    finally:
        if mount in PyunionMount.live:
            mount.abandon()
    branches = [os.fsencode(path) for path in (*layers, base / "work")]
    assert "newfstatat" in (base / "trace").read_text()
    assert strange(base / "trace", branches) == []
    log = mount.log()
    assert not has_control_characters(log)
    assert "Traceback" not in log
    assert "gets EIO" not in log
    for layer, old in zip(layers[1:], before, strict=True):
        assert_same(old, snapshot(layer), f"{layer.name} was changed (before | after)")


def _start(mount: PyunionMount, layers: Layers, metacopy: bool) -> str | None:
    """The sentence with which it is refused."""
    try:
        mount.start(layers, ["metacopy=on"] if metacopy else [])
    except MountRefused as refusal:
        return str(refusal)
    return None


def test_the_watch_notices_what_leads_out(scratch: Path) -> None:
    """The calls of a process that opens what it should not."""
    (scratch / "branch").mkdir()
    (scratch / "branch/a").write_text("")
    branch = os.fsencode(scratch / "branch")
    script = f"""
import os, sys
print(flush=True)
sys.stdin.read(1)
at = os.open({os.fspath(scratch / "branch")!r}, os.O_PATH)
for path, flags in (("a", 0), ("..", 0), ("../outside", 0), ("/etc/passwd", 0)):
    try:
        os.open(path, flags, dir_fd=at)
    except OSError:
        pass
os.symlink("/etc", "way", dir_fd=at)
os.open("way", 0, dir_fd=at)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        with watched(process.pid, scratch / "trace"):
            process.stdin.write(b"x")
            process.stdin.close()
            process.wait()
    found = strange(scratch / "trace", [branch])
    seen = [_decoded(_STRING.findall(line)[0]) for line in found]
    assert seen == [branch, b"..", b"../outside", b"/etc/passwd", b"way"]
