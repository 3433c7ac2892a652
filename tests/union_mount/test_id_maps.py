"""Owners by other numbers: what the union shows, what a branch gets, and who may do what by it.

In all of these tests the users and groups 100000 and above of the branches are those from 0 on in the union.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.harness.files import append, as_user, run, touch_open, tree, write
from tests.harness.union import Union

STORED = 100000
MAPS = (f"uidmapping={STORED}:0:5000", f"gidmapping={STORED}:0:5000")
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
def mapped(pyunion: Union) -> Union:
    """A union to be mounted with MAPS; the kernel, which cannot know of them, shows other owners."""
    pyunion.compare_with_kernel = False
    for branch in (pyunion.low, pyunion.top):
        give(branch, 0, 0, 0o777)
    return pyunion


def test_owners_are_shown_by_the_mapping_and_others_as_stored(mapped: Union) -> None:
    give(write(mapped.low / "in"), 1000, TEAM, 0o644)
    write(mapped.low / "out")
    os.chown(mapped.low / "out", STORED + 5000, 99999)
    (mapped.low / "link").symlink_to("in")
    os.chown(mapped.low / "link", STORED + 1, STORED + 2, follow_symlinks=False)
    mapped.mount(*MAPS)
    assert owner(mapped.at / "in") == (1000, TEAM)
    assert owner(mapped.at / "out") == (STORED + 5000, 99999)
    assert owner(mapped.at / "link") == (1, 2)
    assert owner(mapped.at) == (0, 0)


@pytest.mark.parametrize("uid", [0, 1000])
def test_new_objects_belong_to_their_maker(mapped: Union, uid: int) -> None:
    write(mapped.low / "gone")
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
    for name in ("a", "b", "mine"):
        give(write(mapped.low / name), 1000, 1000, 0o644)
    mapped.mount(*MAPS)
    run("chown", "5:6", mapped.at / "a")
    run("chown", f"{STORED + 9999}", mapped.at / "b")
    member("chgrp", str(TEAM), mapped.at / "mine")
    assert "not permitted" in as_user("chgrp", "8", mapped.at / "mine", check=False)
    assert "not permitted" in as_user("chown", "0", mapped.at / "mine", check=False)
    seen = {"a": (5, 6), "b": (STORED + 9999, 1000), "mine": (1000, TEAM)}
    stored = {"a": (5, 6), "b": (9999, 1000), "mine": (1000, TEAM)}
    for name in seen:
        assert owner(mapped.at / name) == seen[name]
        assert owner(mapped.top / name) == (STORED + stored[name][0], STORED + stored[name][1])


def test_permissions_go_by_the_owners_that_are_shown(mapped: Union) -> None:
    give(write(mapped.low / "own", "o"), 1000, 1000, 0o600)
    give(write(mapped.low / "team", "t"), 0, TEAM, 0o060)
    write(mapped.low / "stored", "s", mode=0o600)
    os.chown(mapped.low / "stored", 5000, 5000)  # no one's by the mapping
    mapped.mount(*MAPS)
    assert as_user("cat", mapped.at / "own") == "o"
    assert member("cat", mapped.at / "team") == "t"
    member("sh", "-c", 'echo + >> "$0"', mapped.at / "team")
    assert "denied" in as_user("cat", mapped.at / "team", check=False)
    for uid in (1000, STORED, STORED + 1000):
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
    write(mapped.low / "d/gone")
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


# -- one owner for all -----------------------------------------------------------------------------------------------


def test_squashing_shows_one_owner_and_stores_none(mapped: Union) -> None:
    write(mapped.low / "f", mode=0o600)
    os.chown(mapped.low / "f", 3, 4)
    mapped.mount("squash_to_uid=1000", "squash_to_gid=1000")
    assert owner(mapped.at) == owner(mapped.at / "f") == (1000, 1000)
    as_user("sh", "-c", 'echo mine >> "$0/f"; : > "$0/new"; mkdir "$0/d"; chown 1000:1000 "$0/f"', mapped.at)
    run("chown", "5:6", mapped.at / "new")
    assert {owner(mapped.at / name) for name in ("f", "new", "d")} == {(1000, 1000)}
    assert owner(mapped.top / "f") == (3, 4)
    assert owner(mapped.top / "new") == owner(mapped.top / "d") == (0, 0)  # the daemon's
    assert "denied" in as_user("cat", mapped.at / "f", uid=1001, check=False)


def test_squashing_one_kind_leaves_the_other(mapped: Union) -> None:
    give(mapped.top, 0, 0, 0o777)
    mapped.mount("squash_to_uid=1000", MAPS[1])
    as_user("touch", mapped.at / "f", uid=1000)
    touch_open(mapped.at / "by-root", os.O_CREAT | os.O_WRONLY)
    assert [owner(mapped.at / name) for name in ("f", "by-root")] == [(1000, 1000), (1000, 0)]
    assert [owner(mapped.top / name) for name in ("f", "by-root")] == [(0, STORED + 1000), (0, STORED)]
    assert tree(mapped.at) == ["by-root", "f"]


def test_squashing_leaves_whom_an_acl_names(mapped: Union) -> None:
    write(mapped.low / "f", "text", mode=0o600)
    mapped.mount("squash_to_uid=5", "squash_to_gid=5")
    run("setfacl", "-m", "u:1000:r,u:1001:rw", mapped.at / "f")
    assert as_user("cat", mapped.at / "f") == "text"
    for where in (mapped.at, mapped.top):
        assert "user:1000:r--\nuser:1001:rw-\n" in run("getfacl", "-nc", where / "f")
