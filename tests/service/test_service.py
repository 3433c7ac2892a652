"""systemd/pyunion@.service on a booted machine: start, use, crash, hang, reload, stop."""

from __future__ import annotations

import os
import re
import signal

import pytest

from pyunion.errors import ExitCode
from tests.service.machine import Machine
from tests.service.unit import Service


def test_start_use_and_stop(machine: Machine, service: Service) -> None:
    service.start()
    assert f'Status: "mounted on {service.point}"' in service.status()
    assert machine.shell(f"cd {service.point}; echo more >> hello; cat hello") == "hello\nmore"
    assert (service.branches / "upper/hello").read_text() == "hello\nmore\n"
    service.stop()
    assert machine.mounts(service.point) == []
    assert list((service.branches / "work/work").iterdir()) == []


def test_log_entries_have_levels_and_fields(machine: Machine, service: Service) -> None:
    service.start()
    with service.seen_from_here("hello").open():
        with machine.awaiting(lambda entry: "is busy" in str(entry.get("MESSAGE"))):
            machine.succeed("systemctl", "stop", "--no-block", service.unit)
        busy = f"{service.point} is busy"
        assert f'Status: "{busy}: ' in service.status()
        assert '; open files: 1; unmounting when it is free"' in service.status()
    service.stop()
    levels = {entry["MESSAGE"].partition(":")[0]: entry["PRIORITY"] for entry in service.entries()}
    assert levels["granted by the kernel"] == "6"
    assert levels[busy] == "4"
    for entry in service.entries():
        assert entry["_SYSTEMD_UNIT"] == service.unit
        assert entry["SYSLOG_IDENTIFIER"] == "pyunion"
        assert entry["CODE_FILE"].endswith("/pyunion/fuse/session.py")
        assert entry["LOGGER"] == "pyunion.fuse.session"
        assert int(entry["CODE_LINE"]) > 0


def test_whoever_the_daemon_may_not_see_is_named_by_umount(machine: Machine, service: Service) -> None:
    """The unit lets it do little, and so it cannot look into other processes."""
    service.start()
    with machine.wait_started("user.service"):
        machine.succeed("systemd-run", f"--working-directory={service.point}", "--unit=user", "sleep", "infinity")
    with machine.awaiting(lambda entry: "is busy" in str(entry.get("MESSAGE"))):
        machine.succeed("systemctl", "stop", "--no-block", service.unit)
    assert "perhaps a process that this one may not look into; root's `pyunion umount` names it" in service.status()
    who = f"sleep (process {machine.show('user.service', 'MainPID')}, working directory {service.point})"
    assert machine.run("pyunion", "umount", service.point).stderr == (
        f"pyunion: {service.point} is busy: {who}; end these, or detach it with --lazy\n"
    )
    machine.succeed("systemctl", "stop", "user.service")
    service.stop()


def test_a_killed_daemon_is_started_again_over_the_dead_mount(machine: Machine, service: Service) -> None:
    service.start()
    killed = service.pid()
    with service.seen_from_here("hello").open():  # who uses the dead mount is not in the way
        with machine.wait_started(service.unit):
            os.kill(killed, signal.SIGKILL)
        assert machine.shell(f"cat {service.point}/hello") == "hello"
    assert service.pid() != killed
    assert service.show("NRestarts") == "1"
    assert machine.mounts(service.point) == ["fuse.pyunion"]
    service.stop()


def test_a_crash_while_the_file_is_wrong_leaves_no_dead_mount(machine: Machine, service: Service) -> None:
    service.start()
    service.say(options=["nonsense"])
    failed = f"Failed to start {service.unit}"
    with machine.awaiting(lambda entry: str(entry.get("MESSAGE")).startswith(failed)):
        os.kill(service.pid(), signal.SIGKILL)
    assert machine.mounts(service.point) == []
    assert "unknown option 'nonsense'" in service.status()


def test_a_hung_daemon_is_ended_and_started_again(machine: Machine, service: Service) -> None:
    service.tune(WatchdogSec="3s")
    service.start()
    hung = service.pid()
    with machine.wait_started(service.unit):
        os.kill(hung, signal.SIGSTOP)
    said = [str(entry["MESSAGE"]) for entry in machine.journal(f"--unit={service.unit}")]
    assert any("Watchdog timeout" in line for line in said)
    assert any("Fatal Python error: Aborted" in line for line in said), "the log says where it hung"
    assert service.pid() != hung
    assert machine.shell(f"cat {service.point}/hello") == "hello"
    service.stop()


def test_what_can_change_is_reloaded(machine: Machine, service: Service) -> None:
    service.start()
    pid = service.pid()
    service.say(options=["ro", "noexec", "noatime"])
    machine.succeed("systemctl", "reload", service.unit)
    flags = set(machine.succeed("findmnt", "--noheadings", "--output=OPTIONS", service.point).split(","))
    assert {"ro", "noexec", "noatime"} <= flags
    assert "Read-only file system" in machine.run("touch", f"{service.point}/new").stderr
    service.say()
    machine.succeed("systemctl", "reload", service.unit)
    flags = set(machine.succeed("findmnt", "--noheadings", "--output=OPTIONS", service.point).split(","))
    assert {"rw", "relatime"} <= flags
    assert "noexec" not in flags
    machine.succeed("touch", f"{service.point}/new")
    assert service.pid() == pid
    service.stop()


@pytest.mark.parametrize(("before", "after"), [("info", "error"), ("error", "info")])
def test_the_log_level_is_reloaded(machine: Machine, service: Service, before: str, after: str) -> None:
    service.say(log_level=before)
    service.start()
    assert machine.succeed("pyunion", "log-level", service.point) == before
    service.say(log_level=after)
    machine.succeed("systemctl", "reload", service.unit)
    assert machine.succeed("pyunion", "log-level", service.point) == after
    service.stop()
    messages = {entry["MESSAGE"] for entry in service.entries()}
    at_start = [message for message in messages if message.startswith("granted by the kernel")]
    assert (bool(at_start), f"SIGTERM: unmounting {service.point}" in messages) == (before == "info", after == "info")


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"upper": "/srv"}, "upperdir"),
        ({"upper": None, "work": None}, "upperdir, workdir"),
        ({"options": ["ro", "userxattr"]}, "metacopy, userxattr"),
        ({"metrics": "127.0.0.1:9301"}, "metrics"),
        ({"options": ["metacopy=on", "squash_to_uid=5"]}, "uidmapping or gidmapping"),
    ],
)
def test_what_cannot_change_is_refused(
    machine: Machine, service: Service, keys: dict[str, object], named: str
) -> None:
    service.say(options=["metacopy=on"])
    service.start()
    service.say(**{"options": ["metacopy=on"]} | keys)
    assert service.control("reload").returncode
    said = (
        f"pyunion: cannot change {named} of {service.point} while it is mounted; unmount it and mount it again"
    )
    assert [entry["PRIORITY"] for entry in machine.journal(f"--unit={service.unit}", f"MESSAGE={said}")] == ["3"]
    assert service.show("ActiveState") == "active"
    machine.succeed("touch", f"{service.point}/new")
    service.stop()


def test_the_lower_branches_are_reloaded(machine: Machine, service: Service) -> None:
    more = service.branches / "more"
    more.mkdir()
    (more / "hello").write_text("hello from more\n")
    service.start()
    assert machine.succeed("cat", f"{service.point}/hello") == "hello"
    lowers = [f"/srv/{service.name}/more", f"/srv/{service.name}/lower"]
    service.say(lower=lowers)
    machine.succeed("systemctl", "reload", service.unit)
    assert machine.succeed("cat", f"{service.point}/hello") == "hello from more"
    service.say(lower=[*lowers, "/srv/nowhere"])
    assert service.control("reload").returncode
    assert machine.succeed("cat", f"{service.point}/hello") == "hello from more"
    service.say(lower=lowers[1:])
    machine.succeed("systemctl", "reload", service.unit)
    assert machine.succeed("cat", f"{service.point}/hello") == "hello"
    service.stop()


def test_a_stop_ends_in_time_whoever_is_inside(machine: Machine, service: Service) -> None:
    service.tune(TimeoutStopSec="3s")
    service.start()
    with service.seen_from_here("hello").open():
        assert service.control("stop").returncode == 0
        assert machine.mounts(service.point) == []
    assert service.show("Result") == "timeout"


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "0.0.0.0"])
def test_metrics_are_served_where_the_file_says_so(machine: Machine, service: Service, host: str) -> None:
    service.say(metrics=f"{host}:9300")
    machine.succeed("systemctl", "daemon-reload")  # its generator lets the service have a network
    service.start()
    to = "::1" if ":" in host else "127.0.0.1"
    ask = f"exec 3<>/dev/tcp/{to}/9300; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
    assert "pyunion_open_files" in machine.succeed("bash", "-c", ask)
    service.stop()


_WRONG = {
    "broken": ("lower = [\n", "line 1: this is no TOML: .*"),
    "unknown": ("# a comment\nfrob = 1\n", "line 2: the key 'frob' is not known; those that are: lower, .*"),
    "type": ('lower = ["/"]\nupper = 3\n', "line 2: upper has to be a string"),
    "none": (None, "does not exist; create it or correct the path"),
}


@pytest.mark.parametrize("case", _WRONG)
def test_a_wrong_file_is_said_in_the_status(service: Service, case: str) -> None:
    text, sentence = _WRONG[case]
    if text is None:
        service.file.unlink()
    else:
        service.file.write_text(text)
    assert service.control("start").returncode
    status = service.status()
    where = rf"/etc/pyunion/{service.name}\.toml(,|:)? "
    assert re.search(rf'Status: "{where}{sentence}"', status), status
    assert re.search(rf"pyunion: {where}{sentence}$", status, re.MULTILINE), status
    assert service.show("ExecMainStatus") == str(ExitCode.CONFIG.value)
    assert service.show("NRestarts") == "0"


def test_it_may_do_what_it_needs_and_little_else(machine: Machine, service: Service) -> None:
    service.start()
    # It misses nothing that it would warn of: read-only views, file handles, locks.
    assert [entry["MESSAGE"] for entry in service.entries() if int(entry["PRIORITY"]) < 6] == []
    assert not [entry for entry in service.entries() if "file handles" in str(entry["MESSAGE"])]
    # The mount is the machine's, with nothing between.
    namespaces = {os.readlink(f"/proc/{pid}/ns/mnt") for pid in (service.pid(), machine.leader)}
    assert len(namespaces) == 1
    # What a mount's users may do is not less than without a service.
    machine.shell(f"""
        cd {service.point}
        mknod device c 10 200 && mkfifo pipe && ln hello link && chmod u+s hello && mkdir folder
        chown nobody folder && setpriv --reuid=nobody --regid=nogroup --clear-groups touch folder/theirs
        test "$(stat -c %U folder/theirs)" = nobody && test -u link && rm hello && mv folder moved
    """)
    # A device that is no pseudo device is not for it.
    group = f"/sys/fs/cgroup{service.show('ControlGroup')}"
    machine.shell(": <> /dev/net/tun")
    inside = machine.run("sh", "-c", f"echo $$ > {group}/cgroup.procs; : <> /dev/net/tun")
    assert "Operation not permitted" in inside.stderr
    figure = machine.succeed("systemd-analyze", "security", "--no-pager", service.unit).rpartition("service: ")[2]
    assert float(figure.split()[0]) < 5, figure
    service.stop()
