"""The syntax of lower lists and -o, and what may be asked for together."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyunion.config import MountConfig, Options, make_config, parse_options, split_lower
from pyunion.errors import ExitCode, PyunionError

# Any bytes but NUL, with those that the syntax cares about often.
_PATHS = st.lists(st.sampled_from([b":", b",", b"\\", b"a", b"\n", b"\xff", b"="]), min_size=1).map(b"".join)


def _escape(path: bytes, special: bytes) -> bytes:
    return re.sub(rb"[\\" + special + rb"]", rb"\\\g<0>", path)


def _config(options: bytes = b"", **changes: Any) -> MountConfig:
    """A configuration with one lower branch `l`, unless something else is asked for."""
    arguments: dict[str, Any] = {"lowers": [b"l"], "upper": None, "work": None, "mountpoint": b"m"}
    return make_config(parse_options(options), **(arguments | {"privileged": True} | changes))


@given(st.lists(_PATHS, min_size=1))
def test_any_path_can_be_in_a_lower_list(paths: list[bytes]) -> None:
    assert split_lower(b":".join(_escape(path, b":") for path in paths)) == (paths, 0)


@given(st.lists(_PATHS, min_size=1), _PATHS, _PATHS)
def test_any_path_can_be_an_option(lowers: list[bytes], upper: bytes, work: bytes) -> None:
    lower_list = b":".join(_escape(path, b":,") for path in lowers)
    text = b"lowerdir=%b,upperdir=%b,workdir=%b" % (lower_list, _escape(upper, b":,"), _escape(work, b","))
    options = parse_options(text)
    assert (options.lowers, options.upper, options.work) == (lowers, upper, work)


def test_a_backslash_makes_the_next_byte_ordinary() -> None:
    assert split_lower(rb"\a\:b:c\\") == ([b"a:b", b"c\\"], 0)


@pytest.mark.parametrize("text", [b"", b":", b"a:", b":a", b"::a", b"a::", b"a:::b", b"a::b:c"])
def test_an_empty_branch_is_refused(text: bytes) -> None:
    with pytest.raises(PyunionError) as caught:
        split_lower(text)
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    "text", [b"lowerdir=l:m::data::more", b"lowerdir+=l,lowerdir+=m,datadir+=data,datadir+=more"]
)
def test_data_only_branches_are_the_last_ones(text: bytes) -> None:
    config = make_config(
        parse_options(text), lowers=[], upper=None, work=None, mountpoint=b"/mnt", privileged=True
    )
    assert config.lowers == (b"l", b"m", b"data", b"more")
    assert config.data_only == 2


@pytest.mark.parametrize("lists", [[b"a::b", b"c"], [b"a::b", b"c::d"]])
def test_nothing_comes_after_data_only_branches(lists: list[bytes]) -> None:
    with pytest.raises(PyunionError, match="data-only"):
        _config(lowers=lists)


def test_lower_lists_add_up() -> None:
    assert _config(lowers=[b"a:b", b"c"]).lowers == (b"a", b"b", b"c")
    assert _config(b"lowerdir=a:b,lowerdir+=c:d", lowers=[]).lowers == (b"a", b"b", b"c:d")


def test_the_last_of_contradicting_options_counts() -> None:
    assert _config(b"ro,rw").read_only is False
    assert _config(b"metacopy=on,metacopy=off").metacopy is False
    assert _config(b"writeback,nowriteback").writeback is False
    assert "nosuid" not in _config(b"nosuid,suid").mount_flags
    options = Options()
    for text in (b"redirect_dir=off", b"redirect_dir=on"):
        parse_options(text, options)
    assert options.switches["redirect_dir"] is True


@pytest.mark.parametrize(
    ("text", "writes", "follows"),
    [
        (b"", True, True),
        (b"on", True, True),
        (b"off", False, True),
        (b"follow", False, True),
        (b"nofollow", False, False),
    ],
)
def test_redirect_dir(text: bytes, writes: bool, follows: bool) -> None:
    config = _config(b"redirect_dir=" + text if text else b"")
    assert (config.redirect_dir, config.follow_redirects) == (writes, follows)


def test_metacopy_needs_redirects() -> None:
    with pytest.raises(PyunionError, match="metacopy=on needs redirect_dir=on"):
        _config(b"metacopy=on,redirect_dir=off")


def test_mount_flags() -> None:
    assert set(_config().mount_flags) == {"suid", "dev"}
    assert set(_config(b"nodev,noexec,exec,noatime").mount_flags) == {"suid", "nodev", "noatime"}
    assert _config(privileged=False).mount_flags == ()
    assert _config(b"nosuid", privileged=False).mount_flags == ("nosuid",)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b",,",
        b"defaults,_netdev,nofail,noauto,user,users,x-systemd.automount,x-a=b,comment=c d",
        b"relatime,strictatime,allow_other,default_permissions,xino=auto,private",
        b"fast_ino=1,static_nlink,threaded=1,clone_fd,max_threads=4,max_idle_threads=2,timeout=1.5",
        b"xattr_permissions=0,noxattrs=0,fsync=1,writeback=1,noaufs",
        b"user_id=0,group_id=0,max_read=131072",
    ],
)
def test_what_means_nothing_changes_nothing(text: bytes) -> None:
    assert _config(text) == _config()


@pytest.mark.parametrize("text", [b"context=a:b", b'fscontext="a:b:c1,c2"'])
def test_what_is_passed_over_is_noted(text: bytes) -> None:
    config = _config(b"noatime," + text + b",ro")
    assert text.decode() in config.notes[0]
    assert config.read_only
    assert "noatime" in config.mount_flags


@pytest.mark.parametrize(
    "text", [b"frob", b"ro=1", b"redirect_dir", b"lowerdir", b"upperdir=", b"xino=maybe"]
)
def test_what_is_unknown_is_refused_by_name(text: bytes) -> None:
    with pytest.raises(PyunionError, match=re.escape(text.partition(b"=")[0].decode())) as caught:
        parse_options(b"ro," + text)
    assert caught.value.exit_code == ExitCode.USAGE


def test_the_source_is_no_list_of_options() -> None:
    with pytest.raises(PyunionError, match="neither commas nor backslashes") as caught:
        _config(b"fsname=a\\,b")
    assert caught.value.exit_code == ExitCode.USAGE


def test_a_sloppy_list_notes_what_is_unknown() -> None:
    options = parse_options(b"frob=1,ro,xino=maybe", Options(sloppy=True))
    assert [note.rpartition(" ")[2] for note in options.notes] == ["frob=1", "xino=maybe"]
    with pytest.raises(PyunionError):  # known, but not to be had
        parse_options(b"noacl", Options(sloppy=True))


@pytest.mark.parametrize("text", [b"xattr_permissions=2", b"noxattrs=1", b"noacl", b"plugins=/usr/lib/x.so"])
def test_what_only_fuse_overlayfs_can_do_is_refused(text: bytes) -> None:
    with pytest.raises(PyunionError, match="of fuse-overlayfs cannot be had") as caught:
        _config(text)
    assert caught.value.exit_code == ExitCode.USAGE


def test_fsync_of_fuse_overlayfs_is_volatile_without_the_mark() -> None:
    config = _config(b"fsync=0")
    assert (config.syncs, config.volatile) == (False, False)
    assert not _config(b"volatile,fsync=1").syncs
    assert _config(b"fsync=0,fsync=1").syncs
    assert not _config(b"writeback=0").writeback


@pytest.mark.parametrize("text", [b"0:100000:2000:5000:9000:1", b":0:100000:2000:5000:9000:1"])
def test_mappings_as_podman_says_them(text: bytes) -> None:
    """What the image has stored as 0 is shown as 100000."""
    uids = _config(b"uidmapping=" + text).owners.uids
    assert (uids.shown(0), uids.stored(101999), uids.shown(5000)) == (100000, 1999, 9000)


@pytest.mark.parametrize("text", [b"", b"0:1", b"0:1:x", b"::0:1:2", b"0:1:4294967296"])
def test_mappings_that_are_none(text: bytes) -> None:
    with pytest.raises(PyunionError, match="uidmapping="):
        _config(b"uidmapping=" + text)
