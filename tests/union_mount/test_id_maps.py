"""Owners by other numbers: what the union shows, what a branch gets, and who may do what by it.

In all of these tests the users and groups 100000 and above of the branches are those from 0 on in the union. With the
kernel they are mapped below overlayfs, by an idmapped mount of all layers.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from pathlib import Path

import pytest

from tests.harness.files import PYTHON, append, as_user, outcome, run, touch_open, tree, write
from tests.harness.idmapped import IdmappedKernelMount
from tests.harness.union import Union

STORED = 100000
COUNT = 5000
MAPS = (f"uidmapping={STORED}:0:{COUNT}", f"gidmapping={STORED}:0:{COUNT}")
OVERFLOW = int(Path("/proc/sys/kernel/overflowuid").read_text())  # shown for who is not in the union
TEAM = 7  # a group, as the union shows it


def owner(path: Path) -> tuple[int, int]:
    st = path.lstat()
    return st.st_uid, st.st_gid


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def member(*command: str | Path) -> str:
    """Run a command as user 1000 whose supplementary group is TEAM."""
    return run("setpriv", "--reuid", "1000", "--regid", "1000", "--groups", str(TEAM), *command)


def give(path: Path, uid: int, gid: int, mode: int) -> Path:
    """Let an object of a branch belong to a user and a group of the union."""
    os.chown(path, STORED + uid, STORED + gid, follow_symlinks=False)
    path.chmod(mode)
    return path


@pytest.fixture
def mapped(union: Union) -> Union:
    """A union to be mounted with MAPS."""
    if union.kind == "kernel":
        union.mounting = IdmappedKernelMount(union.at, union.base)
    return _prepared(union)


@pytest.fixture
def ours(pyunion: Union) -> Union:
    """A union for what the kernel cannot do."""
    return _prepared(pyunion)


def _prepared(union: Union) -> Union:
    union.compare_with_kernel = False  # without the mapping it shows other owners
    for branch in (union.low, union.top, union.work):
        give(branch, 0, 0, 0o777)
    return union


def test_owners_are_shown_by_the_mapping_and_others_as_nobodys(mapped: Union) -> None:
    give(write(mapped.low / "in"), 1000, TEAM, 0o644)
    write(mapped.low / "out")
    os.chown(mapped.low / "out", STORED + COUNT, 99999)
    (mapped.low / "link").symlink_to("in")
    os.chown(mapped.low / "link", STORED + 1, STORED + 2, follow_symlinks=False)
    mapped.mount(*MAPS)
    assert owner(mapped.at / "in") == (1000, TEAM)
    assert owner(mapped.at / "out") == (OVERFLOW, OVERFLOW)
    assert owner(mapped.at / "link") == (1, 2)
    assert owner(mapped.at) == (0, 0)


@pytest.mark.parametrize("uid", [0, 1000])
def test_new_objects_belong_to_their_maker(mapped: Union, uid: int) -> None:
    give(write(mapped.low / "gone"), 0, 0, 0o644)
    mapped.mount(*MAPS)
    (mapped.at / "gone").unlink()  # what is made in its place is prepared elsewhere
    as_user("sh", "-c", 'cd "$0"; : > f; : > gone; mkdir d; mkfifo p; ln -s f s; ln f l', mapped.at, uid=uid)
    for name in ("f", "gone", "d", "p", "s", "l"):
        assert owner(mapped.at / name) == (uid, uid), name
        assert owner(mapped.top / name) == (STORED + uid, STORED + uid), name


def test_copy_up_keeps_what_is_stored(mapped: Union) -> None:
    (mapped.low / "d").mkdir()
    give(mapped.low / "d", 3, 4, 0o755)
    give(write(mapped.low / "d/f"), 1000, TEAM, 0o640)
    mapped.mount(*MAPS)
    append(mapped.at / "d/f", "+")
    for name, ids in (("d", (3, 4)), ("d/f", (1000, TEAM))):
        assert owner(mapped.at / name) == ids
        assert owner(mapped.top / name) == (STORED + ids[0], STORED + ids[1])
    mapped.remount()
    assert owner(mapped.at / "d/f") == (1000, TEAM)


def test_chown_is_stored_by_the_mapping(mapped: Union) -> None:
    for name in ("a", "mine"):
        give(write(mapped.low / name), 1000, 1000, 0o644)
    mapped.mount(*MAPS)
    run("chown", "5:6", mapped.at / "a")
    member("chgrp", str(TEAM), mapped.at / "mine")
    assert "not permitted" in as_user("chgrp", "8", mapped.at / "mine", check=False)
    assert "not permitted" in as_user("chown", "0", mapped.at / "mine", check=False)
    for name, (uid, gid) in {"a": (5, 6), "mine": (1000, TEAM)}.items():
        assert owner(mapped.at / name) == (uid, gid)
        assert owner(mapped.top / name) == (STORED + uid, STORED + gid)


def test_permissions_go_by_the_owners_that_are_shown(mapped: Union) -> None:
    give(write(mapped.low / "own", "o"), 1000, 1000, 0o600)
    give(write(mapped.low / "team", "t"), 0, TEAM, 0o060)
    write(mapped.low / "stored", "s", mode=0o600)
    os.chown(mapped.low / "stored", 1000, 1000)  # no one's by the mapping
    mapped.mount(*MAPS)
    assert as_user("cat", mapped.at / "own") == "o"
    assert member("cat", mapped.at / "team") == "t"
    member("sh", "-c", 'echo + >> "$0"', mapped.at / "team")
    assert "denied" in as_user("cat", mapped.at / "team", check=False)
    for uid in (0, 1000, OVERFLOW, STORED, STORED + 1000):
        assert "denied" in as_user("cat", mapped.at / "stored", uid=uid, check=False)
    assert "denied" in as_user("cat", mapped.at / "own", uid=STORED + 1000, check=False)


def test_acls_name_users_and_groups_by_the_mapping(mapped: Union) -> None:
    for name in ("lower", "set"):
        give(write(mapped.low / name, name), 0, 0, 0o600)
    run("setfacl", "-m", f"u:{STORED + 1000}:r,g:{STORED + TEAM}:rw", mapped.low / "lower")
    mapped.mount(*MAPS)
    run("setfacl", "-m", f"u:1000:r,g:{TEAM}:rw", mapped.at / "set")
    for name in ("lower", "set"):
        assert as_user("cat", mapped.at / name) == name
        assert "denied" in as_user("cat", mapped.at / name, uid=1001, check=False)
        said = run("getfacl", "-nc", mapped.at / name)
        assert "user:1000:r--\n" in said
        assert f"group:{TEAM}:rw-\n" in said
    assert f"user:{STORED + 1000}:r--\n" in run("getfacl", "-nc", mapped.top / "set")
    run("setpriv", "--reuid", "1001", "--regid", str(TEAM), "--clear-groups",
        "sh", "-c", 'echo + >> "$0"', mapped.at / "lower")  # fmt: skip
    assert f"group:{STORED + TEAM}:rw-\n" in run("getfacl", "-nc", mapped.top / "lower")


def test_a_default_acl_is_handed_down_by_the_mapping(mapped: Union) -> None:
    mapped.mount(*MAPS)
    (mapped.at / "d").mkdir()
    run("setfacl", "-d", "-m", "u:1000:rwx", mapped.at / "d")
    run("sh", "-c", 'umask 077; echo text > "$0/f"; mkdir "$0/e"', mapped.at / "d")
    assert as_user("cat", mapped.at / "d/f") == "text\n"
    assert "user:1000:rwx" in run("getfacl", "-nc", mapped.at / "d/f")
    assert "default:user:1000:rwx\n" in run("getfacl", "-nc", mapped.at / "d/e")
    assert f"default:user:{STORED + 1000}:rwx\n" in run("getfacl", "-nc", mapped.top / "d/e")


def test_a_setgid_directory_hands_on_its_group(mapped: Union) -> None:
    (mapped.low / "d").mkdir()
    give(mapped.low / "d", 0, TEAM, 0o2777)
    give(write(mapped.low / "d/gone"), 0, 0, 0o644)
    mapped.mount(*MAPS)
    d = mapped.at / "d"
    (d / "gone").unlink()
    as_user("sh", "-c", 'cd "$0"; mkdir sub; : > f; : > gone', d)
    for name in ("sub", "f", "gone"):
        assert owner(d / name) == (1000, TEAM), name
        assert owner(mapped.top / "d" / name) == (STORED + 1000, STORED + TEAM), name
    assert mode(d / "sub") & 0o2000


@pytest.mark.parametrize("way", ["write", "truncate", "setfacl"])
def test_setgid_goes_by_the_group_that_is_shown(mapped: Union, way: str) -> None:
    """It falls with what somebody outside the group does, and without the right to execute it is only a mark for
    locking, which members keep (inode(7)).
    """
    change = {
        "write": ("sh", "-c", 'echo + >> "$0"'),
        "truncate": ("truncate", "-s", "0"),
        "setfacl": ("setfacl", "-m", "u:5:rw"),
    }[way]
    for name in ("members", "others"):
        give(write(mapped.low / name, "text"), 1000, TEAM, 0o2666)
    give(write(mapped.low / "program", "text"), 1000, TEAM, 0o6777)
    mapped.mount(*MAPS)
    member(*change, mapped.at / "members")
    as_user(*change, mapped.at / "others")
    assert mode(mapped.at / "members") & 0o2000
    assert not mode(mapped.at / "others") & 0o2000
    if way != "setfacl":
        member(*change, mapped.at / "program")
        assert mode(mapped.at / "program") == 0o777
    modes = {name: mode(mapped.at / name) for name in ("members", "others", "program")}
    mapped.remount()
    assert modes == {name: mode(mapped.at / name) for name in modes}


# -- who is not in the mapping ---------------------------------------------------------------------------------------

FOREIGN = [(0, 0), (OVERFLOW, OVERFLOW), (0, STORED), (STORED, 0)]  # as branches have them


def foreign(union: Union, where: str, kind: str, ids: tuple[int, int]) -> Path:
    """An object `f` of a branch whose user or group is not in the union; its mode lets everybody do everything."""
    path: Path = getattr(union, where) / "f"
    if kind == "directory":
        path.mkdir()
        give(write(path / "in", "text"), 0, 0, 0o644)
    else:
        write(path, "text")
    path.chmod(0o777)
    os.chown(path, *ids)
    return path


def changes(path: Path) -> dict[str, str]:
    """What becomes of each change of an object."""
    is_dir = path.is_dir()
    return {
        "chmod": outcome(path.chmod, 0o700),
        "touch": outcome(os.utime, path),
        "set times": outcome(os.utime, path, (1, 1)),
        "set xattr": outcome(os.setxattr, path, "user.a", b"b"),
        "remove xattr": outcome(os.removexattr, path, "user.a"),
        "write": outcome(touch_open, path / "new" if is_dir else path, os.O_WRONLY | os.O_CREAT),
        "rename": outcome(path.rename, path.with_name("moved")),
        "remove": outcome((path / "in").unlink if is_dir else path.unlink),
    }


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("where", ["low", "top"])
@pytest.mark.parametrize("ids", FOREIGN, ids=str)
def test_what_belongs_to_nobody_here_can_be_read_and_not_changed(
    mapped: Union, ids: tuple[int, int], where: str, kind: str
) -> None:
    """Not even by root, nor by the user whose number is shown."""
    path = foreign(mapped, where, kind, ids)
    mapped.mount(*MAPS)
    at = mapped.at / "f"
    assert owner(at) == tuple(0 if number == STORED else OVERFLOW for number in ids)
    said = changes(at)
    assert {said.pop("touch"), said.pop("set times")} <= {"EACCES", "EOVERFLOW"}  # for a stranger, and for the owner
    assert said == {
        "chmod": "EOVERFLOW", "set xattr": "EPERM", "remove xattr": "EPERM", "write": "EACCES", "rename": "EOVERFLOW",
        "remove": "EACCES" if kind == "directory" else "EOVERFLOW",
    }  # fmt: skip
    for command in ("chmod 700 $0", "mv $0 $0.moved", "touch $0/new", "echo + > $0"):
        as_user("sh", "-c", f"! {command}", at, uid=OVERFLOW)
    assert as_user("cat", at / "in" if kind == "directory" else at) == "text"
    assert owner(path) == ids
    assert mode(path) == 0o777
    if where == "low":
        assert tree(mapped.top) == []


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_root_gives_what_is_nobodys_to_somebody(mapped: Union, kind: str) -> None:
    path = foreign(mapped, "top", kind, (0, OVERFLOW))
    mapped.mount(*MAPS)
    for uid, gid in ((5, -1), (-1, 6)):
        assert outcome(os.chown, mapped.at / "f", uid, gid) == "EOVERFLOW"
    run("chown", "5:6", mapped.at / "f")
    as_user("chmod", "700", mapped.at / "f", uid=5)
    assert owner(path) == (STORED + 5, STORED + 6)


@pytest.mark.parametrize("ids", FOREIGN, ids=str)
def test_copy_up_keeps_who_is_nobody_here(ours: Union, ids: tuple[int, int]) -> None:
    """A directory that nobody here may change is copied for what is in it; the kernel says EOVERFLOW."""
    foreign(ours, "low", "directory", ids)
    ours.mount(*MAPS)
    append(ours.at / "f/in", "+")
    assert owner(ours.top / "f") == ids
    assert owner(ours.top / "f/in") == (STORED, STORED)
    assert mode(ours.top / "f") == 0o777


@pytest.mark.parametrize(("ids", "warned"), [((STORED, STORED), False), ((0, STORED), True), ((STORED, 0), True)])
def test_an_upper_that_is_nobodys_is_named_in_the_log(ours: Union, ids: tuple[int, int], warned: bool) -> None:
    """Without a word nobody would know why nothing can be made in the union."""
    os.chown(ours.top, *ids)
    ours.mount(*MAPS)
    assert (outcome((ours.at / "new").mkdir) == "EACCES") is warned
    assert (f"{ours.top}' belongs to a user or group outside of the mapping" in ours.daemon.log()) is warned


def test_what_is_refused_to_who_is_not_in_the_mapping_copies_nothing(ours: Union) -> None:
    """The kernel has copied by then."""
    (ours.low / "d").mkdir()
    give(ours.low / "d", 0, 0, 0o2777)
    give(write(ours.low / "f"), 0, 0, 0o644)
    ours.mount(*MAPS)
    as_user("sh", "-c", '! mkdir "$0/new" && ! touch "$0/new"', ours.at / "d", uid=COUNT)
    run("sh", "-c", f'! chown {COUNT} "$0" && ! setfacl -m u:{COUNT}:r "$0"', ours.at / "f")
    assert tree(ours.top) == []


@pytest.mark.parametrize(("uid", "gid"), [(COUNT, 5), (5, COUNT), (STORED, STORED), (OVERFLOW, OVERFLOW)])
def test_who_is_not_in_the_mapping_creates_nothing(mapped: Union, uid: int, gid: int) -> None:
    """Whatever number a branch got for it, it would be somebody else's in the union."""
    give(write(mapped.low / "gone"), 0, 0, 0o666)
    (mapped.low / "d").mkdir()
    give(mapped.low / "d", 0, 0, 0o777)
    mapped.mount(*MAPS)
    (mapped.at / "gone").unlink()
    made = run(
        "setpriv", "--reuid", str(uid), "--regid", str(gid), "--clear-groups", PYTHON, "-c", _MAKE, mapped.at
    )
    assert made.split() == ["EOVERFLOW"] * 6
    assert tree(mapped.at) == ["d/"]


_MAKE = """
import errno, os, sys
os.chdir(sys.argv[1])
for make in (
    lambda: os.mkdir("new"), lambda: os.mknod("new"), lambda: os.mkfifo("new"), lambda: os.symlink("to", "new"),
    lambda: os.open("gone", os.O_CREAT | os.O_WRONLY), lambda: os.open("d/new", os.O_CREAT | os.O_WRONLY),
):
    try:
        make()
        print("made")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


def test_who_is_not_in_the_mapping_removes_and_renames_as_modes_allow(mapped: Union) -> None:
    for name in ("low", "moved"):
        give(write(mapped.low / name), 0, 0, 0o666)
    mapped.mount(*MAPS)
    as_user("sh", "-c", 'cd "$0" && rm -f low && mv moved to && echo + >> to', mapped.at, uid=COUNT)
    assert tree(mapped.at) == ["to"]
    assert owner(mapped.top / "to") == (STORED, STORED)


@pytest.mark.parametrize("where", ["low", "top"])
def test_nothing_is_given_to_who_is_not_in_the_mapping(mapped: Union, where: str) -> None:
    path = give(write(getattr(mapped, where) / "f"), 1000, 1000, 0o644)
    mapped.mount(*MAPS)
    for uid, gid in ((COUNT, -1), (-1, COUNT), (5, COUNT), (COUNT, 5), (OVERFLOW, OVERFLOW), (STORED, STORED)):
        assert outcome(os.chown, mapped.at / "f", uid, gid) == "EOVERFLOW"
    for named in (f"u:{COUNT}:r", f"g:{STORED}:r", f"u:{OVERFLOW}:r"):
        assert "Invalid argument" in run("setfacl", "-m", named, mapped.at / "f", check=False)
    assert owner(mapped.at / "f") == (1000, 1000)
    assert owner(path) == (STORED + 1000, STORED + 1000)


def test_whom_an_acl_names_and_who_is_not_in_the_mapping_is_nobody_here(mapped: Union) -> None:
    path = give(write(mapped.low / "f", "text"), 0, 0, 0o600)
    run("setfacl", "-m", f"u:{STORED + 1000}:r,u:7:rw,g:8:rw,u:{OVERFLOW}:rw", path)
    mapped.mount(*MAPS)
    assert as_user("cat", mapped.at / "f") == "text"
    for uid in (7, 8, OVERFLOW, STORED, STORED + 7):
        assert "denied" in as_user("cat", mapped.at / "f", uid=uid, check=False), uid
    said = run("getfacl", "-nc", mapped.at / "f")
    assert "user:1000:r--\n" in said
    assert not re.search(f":(7|8|{OVERFLOW}):", said)
    run("setfacl", "-m", "u:1001:r", mapped.at / "f", check=False)  # refused, as the whole list cannot be set
    assert run("getfacl", "-nc", mapped.at / "f") == said


# -- file capabilities are for a root user (capabilities(7)) ---------------------------------------------------------

CAPS = "security.capability"
SETS = b"\0\x04\0\0" + bytes(12)  # cap_net_bind_service is permitted


def caps_of(root: int) -> bytes:
    """The xattr of revision 3, which names the root user."""
    return b"\1\0\0\x03" + SETS + root.to_bytes(4, "little")


CAPS_OF_OUR_ROOT = b"\1\0\0\x02" + SETS  # revision 2


def effective(program: Path) -> bool:
    """Whether an ordinary user has the capability in a program, which is a cat(1)."""
    return "CapEff:\t0000000000000400" in as_user(program, "/proc/self/status", check=False)


def capable(path: Path, value: bytes) -> Path:
    """A program with file capabilities."""
    shutil.copy("/bin/cat", path)
    give(path, 0, 0, 0o755)
    os.setxattr(path, CAPS, value)
    return path


@pytest.mark.parametrize(("stored", "shown"), [(STORED, CAPS_OF_OUR_ROOT), (STORED + 1000, caps_of(1000))])
def test_capabilities_are_for_the_root_that_is_shown(mapped: Union, stored: int, shown: bytes) -> None:
    capable(mapped.low / "program", caps_of(stored))
    mapped.mount(*MAPS)
    assert os.getxattr(mapped.at / "program", CAPS) == shown
    assert effective(mapped.at / "program") == (shown == CAPS_OF_OUR_ROOT)
    (mapped.at / "program").rename(mapped.at / "copied")
    assert os.getxattr(mapped.at / "copied", CAPS) == shown
    assert os.getxattr(mapped.top / "copied", CAPS) == caps_of(stored)


@pytest.mark.parametrize("value", [CAPS_OF_OUR_ROOT, caps_of(7)])
def test_capabilities_for_a_root_outside_of_the_mapping_are_nobodys(mapped: Union, value: bytes) -> None:
    """Those of the real root as well, which revision 2 means."""
    capable(mapped.low / "program", value)
    mapped.mount(*MAPS)
    assert outcome(os.getxattr, mapped.at / "program", CAPS) == "EOVERFLOW"
    assert not effective(mapped.at / "program")


@pytest.mark.parametrize(("value", "root"), [(CAPS_OF_OUR_ROOT, 0), (caps_of(0), 0), (caps_of(1000), 1000)])
def test_capabilities_are_stored_for_the_root_of_the_branch(mapped: Union, value: bytes, root: int) -> None:
    shutil.copy("/bin/cat", mapped.low / "program")
    give(mapped.low / "program", 0, 0, 0o755)
    mapped.mount(*MAPS)
    os.setxattr(mapped.at / "program", CAPS, value)
    assert os.getxattr(mapped.top / "program", CAPS) == caps_of(STORED + root)
    mapped.remount()
    assert os.getxattr(mapped.at / "program", CAPS) == (value if root else CAPS_OF_OUR_ROOT)
    assert effective(mapped.at / "program") == (root == 0)


def test_capabilities_for_a_root_outside_of_the_mapping_are_refused(mapped: Union) -> None:
    give(write(mapped.low / "program"), 0, 0, 0o755)
    mapped.mount(*MAPS)
    for root in (COUNT, STORED):
        assert outcome(os.setxattr, mapped.at / "program", CAPS, caps_of(root)) == "EINVAL"
    assert CAPS not in os.listxattr(mapped.at / "program")


# -- one owner for all -----------------------------------------------------------------------------------------------


def test_squashing_shows_one_owner_and_stores_none(ours: Union) -> None:
    write(ours.low / "f", mode=0o600)
    os.chown(ours.low / "f", 3, 4)
    ours.mount("squash_to_uid=1000", "squash_to_gid=1000")
    assert owner(ours.at) == owner(ours.at / "f") == (1000, 1000)
    as_user("sh", "-c", 'echo mine >> "$0/f"; : > "$0/new"; mkdir "$0/d"; chown 1000:1000 "$0/f"', ours.at)
    run("chown", "5:6", ours.at / "new")
    assert {owner(ours.at / name) for name in ("f", "new", "d")} == {(1000, 1000)}
    assert owner(ours.top / "f") == (3, 4)
    assert owner(ours.top / "new") == owner(ours.top / "d") == (0, 0)  # the daemon's
    assert "denied" in as_user("cat", ours.at / "f", uid=1001, check=False)


def test_squashing_one_kind_leaves_the_other(ours: Union) -> None:
    give(ours.top, 0, 0, 0o777)
    ours.mount("squash_to_uid=1000", MAPS[1])
    as_user("touch", ours.at / "f", uid=1000)
    touch_open(ours.at / "by-root", os.O_CREAT | os.O_WRONLY)
    assert [owner(ours.at / name) for name in ("f", "by-root")] == [(1000, 1000), (1000, 0)]
    assert [owner(ours.top / name) for name in ("f", "by-root")] == [(0, STORED + 1000), (0, STORED)]
    assert tree(ours.at) == ["by-root", "f"]


def test_squashing_leaves_whom_an_acl_names(ours: Union) -> None:
    write(ours.low / "f", "text", mode=0o600)
    ours.mount("squash_to_uid=5", "squash_to_gid=5")
    run("setfacl", "-m", "u:1000:r,u:1001:rw", ours.at / "f")
    assert as_user("cat", ours.at / "f") == "text"
    for where in (ours.at, ours.top):
        assert "user:1000:r--\nuser:1001:rw-\n" in run("getfacl", "-nc", where / "f")
