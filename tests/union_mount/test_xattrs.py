"""Extended attributes, ACLs and file capabilities: read from every layer, changed, and carried by copy_up."""

from __future__ import annotations

import os

import pytest

from tests.harness.files import as_user, make_opaque, outcome, run, touch_open, write
from tests.harness.union import Union


def test_set_replace_and_remove(union: Union) -> None:
    write(union.low / "f")
    os.setxattr(union.low / "f", "user.old", b"1")
    union.mount()
    f = union.at / "f"
    os.setxattr(f, "user.new", b"\0binary\xff")
    os.setxattr(f, "user.empty", b"")
    assert sorted(os.listxattr(f)) == ["user.empty", "user.new", "user.old"]
    assert outcome(os.setxattr, f, "user.old", b"2", os.XATTR_CREATE) == "EEXIST"
    assert outcome(os.setxattr, f, "user.none", b"2", os.XATTR_REPLACE) == "ENODATA"
    os.removexattr(f, "user.old")
    assert outcome(os.getxattr, f, "user.old") == "ENODATA"
    assert outcome(os.removexattr, f, "user.old") == "ENODATA"
    union.remount()
    assert os.getxattr(f, "user.new") == b"\0binary\xff"
    assert os.getxattr(f, "user.empty") == b""


def test_many_and_long_values_survive_copy_up(union: Union) -> None:
    write(union.low / "f")
    values = {f"user.n{number}": b"v" * (number * 20) for number in range(12)}
    values["user.long"] = b"L" * 1500
    for key, value in values.items():
        os.setxattr(union.low / "f", key, value)
    union.mount()
    for change in (None, 0o600):
        if change is not None:
            (union.at / "f").chmod(change)
        assert {key: os.getxattr(union.at / "f", key) for key in os.listxattr(union.at / "f")} == values


def test_names_of_any_bytes(union: Union) -> None:
    union.mount()
    write(union.at / "f")
    os.setxattr(union.at / "f", b"user.\xfe\xff", b"x")
    assert [os.fsencode(key) for key in os.listxattr(union.at / "f")] == [b"user.\xfe\xff"]


def test_the_marks_of_the_union_are_invisible_and_out_of_reach(union: Union) -> None:
    write(union.low2 / "d/f")
    make_opaque(union.low / "d")
    os.setxattr(union.low / "d", "user.fine", b"1")
    write(union.low / "e/g")
    union.mount()
    d = union.at / "d"
    d.chmod(0o700)
    (union.at / "e").rename(union.at / "moved")
    (union.at / "fresh").mkdir()
    for directory in (union.at, d, union.at / "moved", union.at / "fresh"):
        assert [key for key in os.listxattr(directory) if key.startswith("trusted.")] == []
    assert os.listxattr(d) == ["user.fine"]
    assert outcome(os.getxattr, d, "trusted.overlay.opaque") == "ENODATA"
    # A name that only starts alike is an ordinary one.
    assert outcome(os.setxattr, d, "trusted.overlayfoo", b"y") == "OK"
    assert "trusted.overlayfoo" in os.listxattr(d)


def test_an_attribute_named_like_a_mark_is_no_mark(union: Union) -> None:
    write(union.low / "d/f")
    union.mount()
    os.setxattr(union.at / "d", "trusted.overlay.opaque", b"y")
    assert os.listdir(union.at / "d") == ["f"]
    union.remount()
    assert os.listdir(union.at / "d") == ["f"]
    assert os.getxattr(union.at / "d", "trusted.overlay.opaque") == b"y"


def test_trusted_attributes_are_for_the_superuser(union: Union) -> None:
    write(union.low / "f", mode=0o666)
    os.setxattr(union.low / "f", "trusted.t", b"1")
    os.setxattr(union.low / "f", "user.u", b"1")
    union.mount()
    listed = as_user("getfattr", "--absolute-names", "-m", "-", union.at / "f")
    assert "user.u" in listed
    assert "trusted.t" not in listed
    assert "not permitted" in as_user("setfattr", "-n", "trusted.x", "-v", "1", union.at / "f", check=False)


def test_an_acl_grants_and_denies_before_and_after_copy_up(union: Union) -> None:
    write(union.low / "f", "secret", mode=0o600)
    run("setfacl", "-m", "u:1000:r", union.low / "f")
    union.mount()
    for _ in range(2):
        assert as_user("cat", union.at / "f") == "secret"
        assert "denied" in as_user("cat", union.at / "f", uid=1001, check=False)
        assert "user:1000:r--" in run("getfacl", "-ncp", union.at / "f")
        os.utime(union.at / "f")
    run("setfacl", "-m", "u:1001:r,u:1000:-", union.at / "f")
    assert as_user("cat", union.at / "f", uid=1001) == "secret"
    assert "denied" in as_user("cat", union.at / "f", check=False)


def test_chmod_and_acl_mask_move_together(union: Union) -> None:
    write(union.low / "f", mode=0o640)
    run("setfacl", "-m", "u:1000:rw", union.low / "f")
    union.mount()
    (union.at / "f").chmod(0o600)
    assert "mask::---" in run("getfacl", "-ncp", union.at / "f")
    run("setfacl", "-m", "m::rw", union.at / "f")
    assert (union.at / "f").stat().st_mode & 0o777 == 0o660
    run("setfacl", "-b", union.at / "f")
    assert [key for key in os.listxattr(union.at / "f") if "acl" in key] == []


@pytest.mark.parametrize("where", ["low", "at"])
def test_a_default_acl_is_inherited(union: Union, where: str) -> None:
    (union.low / "d").mkdir()
    if where == "low":
        run("setfacl", "-d", "-m", "u:1000:rwx,g:55:rx", union.low / "d")
    union.mount()
    if where == "at":
        run("setfacl", "-d", "-m", "u:1000:rwx,g:55:rx", union.at / "d")
    d = union.at / "d"
    (d / "sub").mkdir()
    touch_open(d / "f", os.O_CREAT | os.O_WRONLY, 0o666)
    os.mkfifo(d / "p")
    assert run("getfacl", "-ncp", d / "sub").count("user:1000:rwx") == 2
    assert run("getfacl", "-ncp", d / "sub").count("group:55:r-x") == 2
    for name in ("f", "p"):
        assert run("getfacl", "-ncp", d / name).count("user:1000:rwx") == 1
    union.remount()
    assert run("getfacl", "-ncp", d / "sub").count("user:1000:rwx") == 2


def test_a_default_acl_overrides_the_umask(union: Union) -> None:
    (union.low / "d").mkdir()
    run("setfacl", "-d", "-m", "u::rwx,g::rwx,o::rx", union.low / "d")
    (union.low / "plain").mkdir()
    union.mount()
    for directory in ("d", "plain"):
        run("sh", "-c", 'umask 077; mkdir "$0/sub"; : > "$0/f"', union.at / directory)
    assert (union.at / "d/sub").stat().st_mode & 0o777 == 0o775
    assert (union.at / "d/f").stat().st_mode & 0o777 == 0o664
    assert (union.at / "plain/sub").stat().st_mode & 0o777 == 0o700
    assert (union.at / "plain/f").stat().st_mode & 0o777 == 0o600


# VFS_CAP_REVISION_2 with CAP_NET_RAW, effective: what `setcap cap_net_raw=ep` writes.
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def test_file_capabilities_survive_copy_up_and_fall_with_a_write(union: Union) -> None:
    for name in ("kept", "written"):
        write(union.low / name, mode=0o777)
        os.setxattr(union.low / name, "security.capability", CAPABILITY)
    union.mount()
    (union.at / "kept").rename(union.at / "moved")
    assert os.getxattr(union.at / "moved", "security.capability") == CAPABILITY
    as_user("sh", "-c", 'echo x >> "$0"', union.at / "written")
    assert outcome(os.getxattr, union.at / "written", "security.capability") == "ENODATA"
    union.remount()
    assert outcome(os.getxattr, union.at / "written", "security.capability") == "ENODATA"


def test_a_copy_without_file_capabilities_can_be_given_some(union: Union) -> None:
    write(union.low / "f", "text")
    union.mount()
    with (union.at / "f").open("a") as file:  # the kernel asks for them before the write
        file.write("more")
    assert outcome(os.getxattr, union.at / "f", "security.capability") == "ENODATA"
    os.setxattr(union.at / "f", "security.capability", CAPABILITY)
    assert os.getxattr(union.at / "f", "security.capability") == CAPABILITY
    union.remount()
    assert os.getxattr(union.at / "f", "security.capability") == CAPABILITY


def test_archives_carry_attributes_through_the_union(union: Union) -> None:
    write(union.low / "d/f", "text")
    os.setxattr(union.low / "d/f", "user.k", b"v")
    run("setfacl", "-m", "u:1000:r", union.low / "d/f")
    make_opaque(union.low / "d")
    union.mount()
    archive = union.base / "archive.tar"
    run("tar", "--xattrs", "--acls", "-cf", archive, "-C", union.at, "d")
    (union.at / "copy").mkdir()
    run("tar", "--xattrs", "--xattrs-include=*", "--acls", "-xf", archive, "-C", union.at / "copy")
    assert os.getxattr(union.at / "copy/d/f", "user.k") == b"v"
    assert "user:1000:r--" in run("getfacl", "-ncp", union.at / "copy/d/f")
