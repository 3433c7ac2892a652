"""`pyunion run`: what a program in an image finds, what is kept of what it writes, and that nothing else is left."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import clean_environment
from tests.harness import leaks
from tests.harness.files import as_user, run, write
from tests.harness.mounts import PATIENCE, REPOSITORY
from tests.harness.program import copy_program
from tests.harness.ready import readable
from tests.harness.snapshot import assert_same, snapshot
from tests.harness.warm import pyunion as command
from tests.layers.docker import write_base
from tests.layers.images import commit

_PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1234:77:An app:/home/app:/bin/sh\nodd line\n"
_GROUP = "root:x:0:\napps:x:77:\nmore:x:78:other,app\nloggers:x:79:\n"
_CONFIG = ("--config.env", "COLOUR=blue", "--config.env", "PATH=/bin:/opt/bin", "--config.cmd", "pwd")


@pytest.fixture(scope="module")
def store(_can_mount: None) -> Iterator[Path]:
    """A store with the images `base`, which says nothing, and `app`."""
    scratch = leaks.make_scratch()
    write_base(scratch / "base.tar")
    (scratch / "root").mkdir()
    with tarfile.open(scratch / "base.tar") as archive:
        archive.extractall(scratch / "root")
    write(scratch / "root/etc/passwd", _PASSWD)
    write(scratch / "root/etc/group", _GROUP)
    write(scratch / "root/opt/bin/mine", "#!/bin/sh\necho mine\n", 0o755)
    (scratch / "root/srv/data").mkdir(parents=True)
    (scratch / "root/srv/data").chmod(0o777)
    # what would lead out of the image, were it followed
    (scratch / "root/proc").symlink_to("/srv")
    (scratch / "root/etc/resolv.conf").symlink_to("/srv/data/resolv")
    commit(scratch / "root", "--oci-layout", f"{scratch}/layout:base")
    run("umoci", "tag", "--image", f"{scratch}/layout:base", "app")
    options = ("--config.user", "app", "--config.workingdir", "/srv/data", *_CONFIG)
    run("umoci", "config", "--image", f"{scratch}/layout:app", *options)
    for tag in ("base", "app"):
        done = command("import", f"{scratch}/layout:{tag}", scratch / "store")
        assert (done.returncode, done.stderr) == (0, "")
    yield scratch / "store"
    leaks.remove_scratch(scratch)


@pytest.fixture(autouse=True)
def _nothing_is_left(store: Path) -> Iterator[None]:
    """Images are as they were, and no process has a mount at the store."""
    before = snapshot(store)
    yield
    assert_same(before, snapshot(store), "an image was changed")
    assert mounts_at(store) == []


def mounts_at(store: Path) -> list[str]:
    """The processes that have something mounted there, in whatever namespace."""
    found = []
    for path in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError):  # it has just ended
            if os.fsencode(f" {store}/") in path.read_bytes():
                found.append(path.parent.name)
    return found


def inside(store: Path, *words: str | Path, image: str = "base", status: int = 0) -> str:
    """Run a program in an image; returns what it says."""
    done = command("run", "--image", f"{store}:{image}", *words)
    assert done.returncode == status, done.stderr
    return done.stdout


def shell(store: Path, script: str, *options: str | Path, image: str = "base", status: int = 0) -> str:
    return inside(store, *options, "--", "sh", "-c", script, image=image, status=status).rstrip("\n")


# -- what it finds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("sh -c 'kill -TERM $$'; exit $?", 128 + signal.SIGTERM)]
)
def test_its_exit_status_is_ours(store: Path, script: str, status: int) -> None:
    shell(store, script, status=status)


def test_a_program_that_is_killed(store: Path) -> None:
    with started(store, "echo ready; sleep 600") as (_, processes):
        os.kill(processes["program"], signal.SIGKILL)
    assert processes.status == 128 + signal.SIGKILL


def test_what_the_image_says(store: Path) -> None:
    said = shell(store, "id -u; id -g; id -G; pwd; echo $COLOUR $HOME; mine", image="app").splitlines()
    assert said == ["1234", "77", "77 78", "/srv/data", "blue /home/app", "mine"]
    assert inside(store, image="app") == "/srv/data\n"  # its Cmd


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ("app", "1234 77 78"),
        ("1234", "1234 77 78"),
        ("4321", "4321 0"),
        ("app:loggers", "1234 79"),
        ("4321:4322", "4321 4322"),
        ("root", "0 0"),
        ("", "0 0"),
    ],
)
def test_users(store: Path, scratch: Path, user: str, said: str) -> None:
    options = () if not user else ("--config.user", user)
    assert shell(configured(store, scratch, *options), "echo $(id -u) $(id -G)", image="t") == said


@pytest.mark.parametrize("user", ["nobody", "app:nogroup"])
def test_a_user_that_the_image_has_not(store: Path, scratch: Path, user: str) -> None:
    done = command("run", "--image", configured(store, scratch, "--config.user", user), "--", "true")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"'{user.rpartition(':')[2]}' is not in its /etc/" in done.stderr


def test_entrypoint_and_working_directory_that_is_not_there(store: Path, scratch: Path) -> None:
    options = ("--config.entrypoint", "echo", "--config.cmd", "said", "--config.workingdir", "/new/dir")
    made = configured(store, scratch, *options)
    assert inside(made, image="t") == "said\n"
    assert shell(made, "pwd", image="t") == "/new/dir"


def configured(store: Path, scratch: Path, *options: str) -> Path:
    """A store with one image, `t`, which has this config."""
    layout = scratch / "layout"
    run("cp", "--archive", store.parent / "layout", layout)
    run("umoci", "config", "--image", f"{layout}:base", "--tag", "t", *options)
    done = command("import", f"{layout}:t", scratch / "store")
    assert (done.returncode, done.stderr) == (0, "")
    return scratch / "store"


def test_nothing_of_the_caller_comes_in(store: Path) -> None:
    done = command("run", "--image", f"{store}:base", "--", "env", SECRET="word")
    assert {line.split("=")[0] for line in done.stdout.splitlines()} == {"PATH", "HOME", "HOSTNAME"}
    script = "ls /proc/self/fd; pwd"
    assert shell(store, script).split() == ["0", "1", "2", "3", "/"]  # the last one is that of ls itself


def test_its_host_name(store: Path) -> None:
    own = socket.gethostname()
    name, said, address = shell(store, "hostname; cat /etc/hostname; grep -c $(hostname) /etc/hosts").splitlines()
    assert name == said != own
    assert address == "1"
    assert shell(store, "hostname other; hostname") == "other"
    assert socket.gethostname() == own


def test_its_network_is_the_machines(store: Path) -> None:
    assert shell(store, "readlink /proc/self/ns/net") == os.readlink("/proc/self/ns/net")
    assert shell(store, "cat /etc/resolv.conf").strip() == Path("/etc/resolv.conf").read_text().strip()


def test_it_is_the_first_of_few_processes(store: Path) -> None:
    assert shell(store, "echo $$; echo /proc/[0-9]*").split() == ["1", "/proc/1"]


def test_its_mounts(store: Path) -> None:
    assert [" ".join(line.split()[1:3]) for line in shell(store, "cat /proc/mounts").splitlines()] == [
        *("/ fuse.pyunion", "/proc proc", "/dev tmpfs", "/dev/pts devpts", "/dev/shm tmpfs", "/sys sysfs"),
    ]
    assert shell(store, "echo x > /sys/kernel/profiling; echo $?").endswith("1")
    script = "cd /dev; head -c 3 zero | wc -c; echo x > null; head -c 2 urandom | wc -c; echo y > full || echo no"
    assert shell(store, script).split() == ["3", "2", "no"]
    assert shell(store, "echo text > /dev/shm/f; cat /dev/shm/f; stat -c %a /dev/shm").split() == ["text", "1777"]


@pytest.mark.parametrize(("name", "status"), [("nosuch", 127), ("/no/such", 127), ("/etc/motd", 126), ("/etc", 126)])
def test_a_program_that_cannot_run(store: Path, name: str, status: int) -> None:
    done = command("run", "--image", f"{store}:base", "--", name)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"pyunion: cannot run {name}: ")


# -- what it writes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--rm",)])
def test_what_it_writes_is_gone(store: Path, options: tuple[str, ...]) -> None:
    shell(store, "echo x > /new; rm -r /old /etc/motd; echo y > /d/a; test -e /new", *options)
    assert shell(store, "cat /etc/motd /d/a; ls -d /new /old 2>/dev/null || true", *options).split() == [
        *("hello", "a", "/old"),
    ]


def test_what_it_writes_is_kept(store: Path, scratch: Path) -> None:
    kept = ("--upper", scratch / "upper", "--work", scratch / "work")
    for name in ("upper", "work"):
        (scratch / name).mkdir()
    shell(store, "echo x > /new; rm -r /old; echo y >> /d/a", *kept)
    assert shell(store, "cat /new /d/a; test -e /old || echo gone", *kept).split() == ["x", "a", "y", "gone"]
    assert sorted(path.name for path in (scratch / "upper").rglob("*")) == ["a", "d", "new", "old"]
    (lower,) = (store / "layers").iterdir()
    done = command("diff", "--upper", scratch / "upper", "--lower", lower)
    assert done.stdout.splitlines() == ["C /d", "C /d/a", "A /new", "D /old"]
    done = command("check", "--upper", scratch / "upper", "--work", scratch / "work", "--lower", lower)
    assert (done.returncode, done.stdout) == (0, "")


def test_packages_in_a_debian(debian: Path, scratch: Path) -> None:
    commit(debian, "--oci-layout", f"{scratch}/layout:t", "--compression", "none")
    done = command("import", f"{scratch}/layout:t", scratch / "debian")
    assert (done.returncode, done.stderr) == (0, "")
    kept = ("--upper", scratch / "upper", "--work", scratch / "work")
    for name in ("upper", "work"):
        (scratch / name).mkdir()
    script = """
        set -e
        exec > /dev/null
        dpkg --purge sqlite3
        dpkg --install /var/cache/apt/archives/sqlite3_*.deb
        useradd --create-home --user-group somebody"""
    shell(scratch / "debian", script, *kept, image="t")
    script = """
        set -e
        cd /home/somebody
        dpkg --verify sqlite3
        sqlite3 :memory: 'select 6*7'
        su somebody -c 'id -un; pwd'
        script -qc tty /dev/null"""
    said = shell(scratch / "debian", script, *kept, image="t")
    assert said.split() == ["42", "somebody", "/home/somebody", "/dev/pts/0"]


def test_an_upper_that_is_in_use(store: Path, scratch: Path) -> None:
    for name in ("upper", "work"):
        (scratch / name).mkdir()
    kept = ("--upper", scratch / "upper", "--work", scratch / "work")
    with started(store, "echo ready; trap 'exit 0' TERM; while :; do sleep 600 & wait; done", *kept):
        done = command("run", "--image", f"{store}:base", *kept, "--", "true")
        assert done.returncode == 4
        assert "in use" in done.stderr


# -- signals, and the end -----------------------------------------------------------------------------------------


class Processes(dict[str, int]):
    """The processes of a run by what they are for, and the exit status of the command."""

    status: int


@contextlib.contextmanager
def started(
    store: Path, script: str, *options: str | Path
) -> Iterator[tuple[subprocess.Popen[str], Processes]]:
    """A shell in an image that has said something; in the end it is told to end, and all its processes have to."""
    command_line = [sys.executable, "-m", "pyunion", "run", "--image", f"{store}:base", *map(str, options)]
    running = subprocess.Popen(
        [*command_line, "--", "sh", "-c", script],
        cwd=REPOSITORY, env=clean_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with running:
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        (keeper,) = children(running.pid)
        daemon, program = children(keeper)
        processes = Processes(command=running.pid, keeper=keeper, daemon=daemon, program=program)
        ends = [os.pidfd_open(pid) for pid in (*processes.values(), *children(program))]
        try:
            yield running, processes
            running.terminate()
            for end in ends:
                assert readable(end, seconds=PATIENCE), "a process is left"
        finally:
            running.kill()
            for end in ends:
                os.close(end)
    processes.status = running.returncode


def children(pid: int) -> list[int]:
    """Those of a process, the oldest first."""
    return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2"])
def test_signals_are_passed_on(store: Path, name: str) -> None:
    script = f"trap 'exit 42' {name}; echo ready; while :; do sleep 600 & wait; done"
    with started(store, script) as (running, processes):
        running.send_signal(signal.Signals[f"SIG{name}"])
        running.wait(PATIENCE)
    assert processes.status == 42


_IGNORING = """
import os, signal, sys
for name in sys.argv[1].split():
    signal.signal(getattr(signal, name), signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def test_what_the_caller_ignores_the_program_does_not(store: Path) -> None:
    names = "SIGHUP SIGINT SIGQUIT SIGUSR1 SIGTERM SIGCHLD"  # nohup(1), and `&` in a script, ignore some
    done = subprocess.run(
        [
            *(sys.executable, "-c", _IGNORING, names, "-m", "pyunion", "run", "--image", f"{store}:base"),
            *("--", "grep", "SigIgn", "/proc/self/status"),
        ],
        cwd=REPOSITORY, env=clean_environment(), capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["SigIgn:", "0" * 16], "")


_TOLD_TO_END = """
import os, signal, sys
from tests.harness.ready import readable
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
os.kill(os.getpid(), signal.SIGTERM)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


def test_a_signal_before_there_is_a_program(store: Path) -> None:
    command_line = ["-m", "pyunion", "run", "--image", f"{store}:base", "--", "echo", "started"]
    done = subprocess.run(
        [sys.executable, "-c", _TOLD_TO_END, *command_line],
        cwd=REPOSITORY, env=clean_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGTERM, "", "")


@pytest.mark.parametrize(
    ("victim", "status"), [("command", -9), ("keeper", 137), ("daemon", 1), ("program", 137)]
)
def test_whoever_is_killed_nothing_is_left(store: Path, victim: str, status: int) -> None:
    with started(store, "echo ready; echo x > /new; sleep 600") as (running, processes):
        os.kill(processes[victim], signal.SIGKILL)
        running.wait(PATIENCE)
    assert processes.status == status


def test_the_terminal_stays(store: Path) -> None:
    """Its size and Ctrl-C reach the program, once."""
    ours, theirs = os.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("=4H", 33, 77, 0, 0))
    script = "trap 'echo int' INT; stty size; echo ready; until read -r line; do :; done; echo got $line; exit 5"
    command_line = [sys.executable, "-m", "pyunion", "run", "--image", f"{store}:base", "--", "sh", "-c", script]
    done = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *command_line],
        cwd=REPOSITORY, env=clean_environment(), stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    said = b""
    with done:
        try:
            said = _read_until(ours, b"ready")
            os.write(ours, b"\x03")
            said += _read_until(ours, b"int")
            os.write(ours, b"word\n")
            said += _read_until(ours, b"got word")
            assert done.wait(PATIENCE) == 5, said
        finally:
            done.kill()
            os.close(ours)
    assert said.count(b"int\r\n") == 1
    assert b"33 77\r\n" in said


def _read_until(fd: int, wanted: bytes) -> bytes:
    said = b""
    while wanted not in said:
        assert select.select([fd], [], [], PATIENCE)[0], said
        said += os.read(fd, 4096)
    return said


# -- refusals -----------------------------------------------------------------------------------------------------


def test_for_root_only(store: Path, scratch: Path) -> None:
    program = copy_program(scratch / "program")
    script = f'cd / && PYTHONPATH="$0" {program} run --image "$1" -- true'
    said = as_user("sh", "-c", script, scratch / "program", store, check=False)
    assert said == "pyunion: only root can run a program in an image, as it takes namespaces and mounts; use sudo\n"


def test_root_without_its_capabilities(store: Path) -> None:
    command_line = [sys.executable, "-m", "pyunion", "run", "--image", f"{store}:base", "--", "true"]
    done = subprocess.run(
        ["setpriv", "--bounding-set=-sys_admin", *command_line],
        cwd=REPOSITORY, env=clean_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=PATIENCE,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("pyunion: cannot make a namespace, which takes CAP_SYS_ADMIN: ")


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--image", "{store}:nosuch", "--", "true"), 2, "there is no image 'nosuch' in "),
        (("--image", "{store}", "--", "true"), 2, "name one of the images: app, base"),
        (("--image", "{store}:base"), 2, "the image names no program"),
        (("--image", "{store}:base", "--upper", "/tmp", "--", "true"), 2, "--upper and --work go together"),
        (("--image", "{store}:base", "--upper", "/a", "--work", "/b", "--", "true"), 3, "/a does not exist"),
        (("--image", "{store}:base", "--rm", "--upper", "/a", "--work", "/b", "true"), 2, "--rm keeps nothing"),
    ],
)
def test_refusals(store: Path, options: tuple[str, ...], status: int, said: str) -> None:
    done = command("run", *(option.format(store=store) for option in options))
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
