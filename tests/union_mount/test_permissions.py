"""Who may do what, whom new objects belong to, and when set-id bits fall: as on a local file system."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.harness.files import PYTHON, as_user, run, touch_open, tree, write
from tests.harness.union import Union


def test_a_refused_change_copies_nothing_up(union: Union) -> None:
    write(union.low / "f", mode=0o644)
    write(union.low / "d/g")
    union.mount()
    f = union.at / "f"
    for refused in (
        ("sh", "-c", 'echo y >> "$0"', f),
        ("chmod", "777", f),
        ("chown", "1000", f),
        ("rm", "-f", f),
        ("mv", f, union.at / "g"),
        ("touch", "-d", "2020-01-01", f),
        ("ln", f, union.at / "d/link"),
        ("mkdir", union.at / "d/e"),
        ("setfattr", "-n", "user.a", "-v", "b", f),
        ("truncate", "-s", "0", f),
    ):
        said = as_user(*refused, check=False)
        assert "denied" in said or "not permitted" in said or "cannot create" in said, refused
    union.unmount()
    assert tree(union.top) == []


def test_an_unreadable_file_or_directory_stays_closed(union: Union) -> None:
    write(union.low / "private/secret", "s", mode=0o644)
    (union.low / "private").chmod(0o700)
    write(union.low2 / "closed", "s", mode=0o600)
    union.mount()
    for _ in range(2):
        assert "denied" in as_user("cat", union.at / "private/secret", check=False)
        assert "denied" in as_user("ls", union.at / "private", check=False)
        assert "denied" in as_user("cat", union.at / "closed", check=False)
        # root has looked, so the kernel knows the entries now
        assert tree(union.at) == ["closed", "private/", "private/secret"]
        os.utime(union.at / "private/secret")


def test_the_owner_changes_read_only_files_of_his_own(union: Union) -> None:
    for name in "abcd":
        write(union.low / name, name, mode=0o444)
        os.chown(union.low / name, 1000, 1000)
    for branch in (union.low, union.low2, union.low3, union.top):
        branch.chmod(0o777)
    union.mount()
    as_user("rm", "-f", union.at / "a")
    as_user("chmod", "u+w", union.at / "b")
    as_user("sh", "-c", 'echo z >> "$0"', union.at / "b")
    as_user("mv", union.at / "c", union.at / "c2")
    as_user("sh", "-c", 'echo n > "$0/new" && mv -f "$0/new" "$0/d"', union.at)
    assert tree(union.at) == ["b", "c2", "d"]
    assert (union.at / "c2").stat().st_mode & 0o777 == 0o444


def test_new_objects_belong_to_who_made_them(union: Union) -> None:
    (union.low / "open").mkdir()
    (union.low / "open").chmod(0o777)
    union.mount()
    script = 'cd "$0"; umask 027; : > f; mkdir d; mkfifo p; ln -s x s'
    as_user("sh", "-c", script, union.at / "open")
    modes = {"f": 0o640, "d": 0o750, "p": 0o640, "s": 0o777}
    for name, mode in modes.items():
        for where in (union.at, union.top):
            st = (where / "open" / name).lstat()
            assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (1000, 1000, mode), name


def test_a_setgid_directory_hands_on_its_group(union: Union) -> None:
    (union.low / "d").mkdir()
    os.chown(union.low / "d", 0, 7)
    (union.low / "d").chmod(0o2777)
    write(union.low / "d/gone")
    union.mount()
    d = union.at / "d"
    (d / "gone").unlink()
    as_user("mkdir", d / "sub")
    as_user("touch", d / "file", d / "gone")
    assert d.stat().st_mode & 0o7777 == 0o2777
    assert ((d / "sub").stat().st_gid, (d / "sub").stat().st_mode & 0o7000) == (7, 0o2000)
    for name in ("file", "gone"):
        st = (d / name).stat()
        assert (st.st_uid, st.st_gid) == (1000, 7)


def test_setgid_is_dropped_for_who_is_not_in_the_group(union: Union) -> None:
    (union.low / "d").mkdir()
    os.chown(union.low / "d", 0, 7)
    (union.low / "d").chmod(0o2777)
    union.mount()
    script = "umask 0; sysopen(F, $ARGV[0], O_CREAT | O_WRONLY, 02775) or die $!"
    as_user("perl", "-MFcntl", "-e", script, union.at / "d/f")
    assert (union.at / "d/f").stat().st_mode & 0o7777 == 0o775


@pytest.mark.parametrize(("groups", "kept"), [([], False), ([7], True)], ids=["outside", "member"])
def test_setgid_goes_with_an_acl_set_from_outside_the_group(union: Union, groups: list[int], kept: bool) -> None:
    write(union.low / "f")
    os.chown(union.low / "f", 1000, 7)
    (union.low / "f").chmod(0o2755)
    union.mount()
    membership = ["--groups", ",".join(map(str, groups))] if groups else ["--clear-groups"]
    run("setpriv", "--reuid", "1000", "--regid", "1000", *membership, "setfacl", "-m", "u::rwx,u:5:r", union.at / "f")
    assert bool((union.at / "f").stat().st_mode & 0o2000) is kept


def test_a_sticky_directory_protects_the_files_of_others(union: Union) -> None:
    write(union.low / "tmp/a")
    os.chown(union.low / "tmp/a", 1001, 1001)
    (union.low / "tmp").chmod(0o1777)
    union.mount()
    tmp = union.at / "tmp"
    assert "not permitted" in as_user("rm", "-f", tmp / "a", check=False)
    assert "not permitted" in as_user("mv", tmp / "a", tmp / "b", check=False)
    as_user("sh", "-c", 'echo b > "$0/own" && mv "$0/own" "$0/own2" && rm "$0/own2"', tmp)
    as_user("rm", tmp / "a", uid=1001)
    assert tree(union.at) == ["tmp/"]
    assert tmp.stat().st_mode & 0o7777 == 0o1777


@pytest.mark.parametrize("mode", [0o2666, 0o2676, 0o6666])
@pytest.mark.parametrize("way", [("sh", "-c", 'echo b >> "$0"'), ("truncate", "-s", "0")], ids=["write", "truncate"])
def test_setgid_without_execute_stays_when_a_member_writes(union: Union, mode: int, way: tuple[str, ...]) -> None:
    """Without the group's right to execute, setgid is a mark for locking (inode(7)), and nobody's right."""
    for name in ("members", "others"):
        write(union.low / name, "a")
        os.chown(union.low / name, 1000, 7)
        (union.low / name).chmod(mode)
    union.mount()
    run("setpriv", "--reuid", "1000", "--regid", "1000", "--groups", "7", *way, union.at / "members")
    as_user(*way, union.at / "others")
    kept = 0o2666 if mode & 0o070 == 0o060 else mode & 0o777
    assert (union.at / "members").stat().st_mode & 0o7777 == kept
    assert (union.at / "others").stat().st_mode & 0o7777 == mode & 0o777
    union.remount()
    assert (union.at / "others").stat().st_mode & 0o7777 == mode & 0o777


@pytest.mark.parametrize("mode", [0o2666, 0o6666, 0o2776, 0o4777])
@pytest.mark.parametrize("name", ["f", "gone", "."], ids=["new", "over a whiteout", "nameless"])
@pytest.mark.parametrize("groups", ["", "7"], ids=["outside", "member"])
def test_the_maker_of_a_file_writes_as_everybody_does(
    union: Union, scratch: Path, groups: str, name: str, mode: int
) -> None:
    """Who makes a file in a setgid directory need not be in the file's group."""
    write(union.low / "d/gone")
    (scratch / "local").mkdir()
    for directory in (union.low / "d", scratch / "local"):
        os.chown(directory, 0, 7)
        directory.chmod(0o2777)
    union.mount()
    (union.at / "d/gone").unlink()

    def modes(directory: Path) -> str:
        """The modes of a file after it was made and after a write."""
        script = f"""
import os, sys
os.umask(0)
fd = os.open(sys.argv[1], {"os.O_TMPFILE" if name == "." else "os.O_CREAT"} | os.O_WRONLY, {mode})
for text in (b"", b"text"):
    os.write(fd, text)
    print(oct(os.fstat(fd).st_mode))
"""
        membership = ["--groups", groups] if groups else ["--clear-groups"]
        return run("setpriv", "--reuid", "1000", "--regid", "1000", *membership, PYTHON, "-c", script,
                   directory / name)  # fmt: skip

    assert modes(union.at / "d") == modes(scratch / "local")
    if name != ".":
        kept = (union.at / "d" / name).stat().st_mode
        assert kept == (scratch / "local" / name).stat().st_mode
        union.remount()
        assert (union.at / "d" / name).stat().st_mode == kept


@pytest.mark.parametrize("layer", ["low", "top"])
def test_set_id_bits_fall_as_on_a_local_file_system(union: Union, layer: str) -> None:
    branch = getattr(union, layer)
    for name, mode in (("root", 0o4755), ("other", 0o6777), ("owned", 0o4755), ("cut", 0o4777)):
        write(branch / name, "a", mode=mode)
    union.mount()
    run("sh", "-c", 'echo b >> "$0"', union.at / "root")
    as_user("sh", "-c", 'echo b >> "$0"', union.at / "other")
    as_user("truncate", "-s", "0", union.at / "cut")
    os.chown(union.at / "owned", 1, 1)
    expected = {"root": 0o4755, "other": 0o777, "owned": 0o755, "cut": 0o777}

    def modes() -> dict[str, int]:
        return {name: (union.at / name).stat().st_mode & 0o7777 for name in expected}

    assert modes() == expected
    union.remount()
    assert modes() == expected


def test_a_setuid_program_runs_as_its_owner(union: Union) -> None:
    run("cp", "/usr/bin/id", union.low / "id")
    (union.low / "id").chmod(0o4755)
    union.mount()
    assert as_user(union.at / "id", "-u").strip() == "0"
    os.utime(union.at / "id")
    assert as_user(union.at / "id", "-u").strip() == "0"


def test_programs_that_replace_files_in_place(union: Union) -> None:
    """sed -i makes a file of mode 0, changes its owner and mode, and renames it."""
    write(union.low / "home/h", "colour\n", mode=0o664)
    os.chown(union.low / "home/h", 1000, 1000)
    (union.low / "home").chmod(0o777)
    union.mount()
    as_user("sed", "-i", "s/our/or/", union.at / "home/h")
    st = (union.at / "home/h").stat()
    assert (union.at / "home/h").read_text() == "color\n"
    assert (st.st_uid, st.st_mode & 0o7777) == (1000, 0o664)
    assert tree(union.at / "home") == ["h"]


def test_a_file_may_be_made_that_its_maker_cannot_read(union: Union) -> None:
    union.mount()
    fd = os.open(union.at / "f", os.O_CREAT | os.O_RDWR, 0)
    os.write(fd, b"text")
    assert os.pread(fd, 4, 0) == b"text"
    os.close(fd)
    assert (union.at / "f").stat().st_mode & 0o7777 == 0


def test_access_tells_what_open_does(union: Union) -> None:
    write(union.low / "f", mode=0o604)
    os.chown(union.low / "f", 0, 1000)
    union.mount()
    assert "no" in as_user("sh", "-c", 'test -r "$0" && echo yes || echo no', union.at / "f")
    assert "yes" in as_user("sh", "-c", 'test -r "$0" && echo yes || echo no', union.at / "f", uid=1001)
    touch_open(union.at / "f", os.O_RDWR)
