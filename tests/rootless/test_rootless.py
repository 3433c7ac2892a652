"""pyunion as an ordinary user runs it: by fusermount3, and as root of a user namespace of the user's own.

Each scenario is a script that runs as that user in a mount namespace where /dev/fuse is open to all, as it is on most
machines. The program runs from a copy.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.harness.files import write
from tests.harness.program import copy_program

USER = 1  # "daemon": fusermount3 wants a user with a name

# the namespace that all share: a private /dev/fuse for everybody
_PREPARE = """
set -e
mkdir -p dev && mount -t tmpfs -o dev,mode=755 none dev && mknod dev/fuse c 10 229 && chmod 666 dev/fuse
mount --bind dev/fuse /dev/fuse
exec setpriv --reuid {user} --regid {user} --clear-groups {wrapper} sh -e -c "$SCRIPT"
"""
_WRAPPERS = {"fusermount3": "", "user namespace": "unshare --user --map-root-user --mount --propagation private"}


@pytest.fixture
def place(scratch: Path) -> Path:
    """The scratch directory with branches that belong to the user, and a copy of the program beside them."""
    scratch.chmod(0o755)
    (scratch / "pyunion").write_text(copy_program(scratch / "program"))
    for name in ("lower", "upper", "work", "mnt"):
        (scratch / name).mkdir()
    write(scratch / "lower/file", "lower\n")
    write(scratch / "lower/readonly", "lower\n", mode=0o444)
    write(scratch / "lower/d/gone")
    write(scratch / "lower/d/stays", "stays\n")
    for path in (scratch, *scratch.glob("[luwm]*"), *scratch.glob("lower/**/*")):
        os.chown(path, USER, USER)
    return scratch


def as_user(place: Path, way: str, script: str) -> str:
    program = (place / "pyunion").read_text()
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c",
         _PREPARE.format(user=USER, wrapper=_WRAPPERS[way])],
        cwd=place,
        env={**os.environ, "SCRIPT": script, "PYUNION": program, "PYTHONPATH": str(place / "program"), "HOME": "/"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


CHANGES = """
$PYUNION mount --lower lower --upper upper --work work mnt
echo more >> mnt/file
echo more >> mnt/readonly 2>/dev/null || chmod u+w mnt/readonly
rm mnt/d/gone
mkdir mnt/new
rm -r mnt/new && mkdir mnt/new
mv mnt/file mnt/moved
cat mnt/moved mnt/d/stays
ls mnt mnt/d
umount mnt 2>/dev/null || $PYUNION umount mnt
"""
EXPECTED = "lower\nmore\nstays\nmnt:\nd\nmoved\nnew\nreadonly\n\nmnt/d:\nstays\n"


@pytest.mark.parametrize("way", _WRAPPERS)
def test_a_user_changes_lower_files_of_his_own(place: Path, way: str) -> None:
    assert as_user(place, way, CHANGES) == EXPECTED
    assert (place / "lower/file").read_text() == "lower\n"
    assert (place / "upper/moved").stat().st_uid == USER


@pytest.mark.parametrize("way", _WRAPPERS)
def test_the_kernel_reads_the_marks_by_userxattr(place: Path, way: str) -> None:
    as_user(place, way, CHANGES)
    look = """
    mount -t overlay overlay -o userxattr,lowerdir=lower,upperdir=upper,workdir=work mnt
    cat mnt/moved mnt/d/stays
    ls mnt mnt/d
    """
    assert as_user(place, "user namespace", look) == EXPECTED


@pytest.mark.parametrize("way", _WRAPPERS)
def test_ro_reads_the_marks_that_a_user_has_written(place: Path, way: str) -> None:
    as_user(place, way, CHANGES)
    look = """
    $PYUNION mount -o ro --lower lower --upper upper --work work mnt
    cat mnt/moved mnt/d/stays
    ls mnt mnt/d
    umount mnt 2>/dev/null || $PYUNION umount mnt
    """
    assert as_user(place, way, look) == EXPECTED


@pytest.mark.parametrize("way", _WRAPPERS)
def test_a_user_renames_a_lower_directory(place: Path, way: str) -> None:
    """By rename(2), where mv would copy; with the kernel's userxattr it is EXDEV."""
    script = """
    $PYUNION mount --lower lower --upper upper --work work mnt
    perl -e 'rename "mnt/d", "mnt/e" or die $!'
    cat mnt/e/stays
    umount mnt 2>/dev/null || $PYUNION umount mnt
    """
    assert as_user(place, way, script) == "stays\n"
    assert os.listdir(place / "upper/e") == []


@pytest.mark.parametrize("way", _WRAPPERS)
def test_a_user_operates_a_mount_of_his_own(place: Path, way: str) -> None:
    script = """
    $PYUNION mount --lower lower --upper upper --work work mnt
    echo more >> mnt/file
    $PYUNION log-level mnt debug
    $PYUNION log-level mnt
    $PYUNION status mnt | grep -o 'file 1'
    $PYUNION top --once --interval 0.1 mnt >/dev/null
    $PYUNION which mnt/file | sed 's/  */ /g'
    $PYUNION tree mnt | grep stays
    umount mnt 2>/dev/null || $PYUNION umount mnt
    """
    assert as_user(place, way, script).splitlines() == [
        "debug",
        "file 1",
        f"mnt/file: file, from {place}/upper (upper)",
        f" upper {place}/upper/file file shown",
        f" lower {place}/lower/file file hidden by the file {place}/upper/file",
        "│   └── stays  [lower]",
    ]


def test_lower_objects_of_owners_without_an_id_here_can_be_changed_as_their_modes_allow(place: Path) -> None:
    foreign = write(place / "lower/foreign", "root's\n", mode=0o666)
    (place / "lower/open").mkdir(mode=0o777)
    (place / "lower/open").chmod(0o777)
    (place / "lower/empty").mkdir()
    assert foreign.stat().st_uid == 0
    script = """
    $PYUNION mount --lower lower --upper upper --work work mnt
    echo ours >> mnt/foreign
    mkdir mnt/open/new
    rmdir mnt/empty
    stat -c %u:%g mnt/foreign
    umount mnt
    """
    assert as_user(place, "user namespace", script) == "0:0\n"
    assert (place / "upper/foreign").read_text() == "root's\nours\n"
    assert (place / "upper/foreign").stat().st_uid == USER
    assert foreign.read_text() == "root's\n"


def test_a_copy_that_changes_hands_is_not_setuid(place: Path) -> None:
    write(place / "lower/tool", "#!/bin/sh\n", mode=0o6777)
    script = """
    $PYUNION mount --lower lower --upper upper --work work mnt
    echo echo >> mnt/tool
    umount mnt
    """
    as_user(place, "user namespace", script)
    assert (place / "upper/tool").stat().st_mode & 0o7000 == 0


@pytest.mark.parametrize("way", _WRAPPERS)
def test_a_user_can_remove_what_a_volatile_mount_leaves_for_later_ones(place: Path, way: str) -> None:
    script = """
    unmount() { umount mnt 2>/dev/null || $PYUNION umount mnt; }
    $PYUNION mount -o volatile --lower lower --upper upper --work work mnt
    unmount
    ! $PYUNION mount --lower lower --upper upper --work work mnt 2> said
    grep -o 'last used by a volatile mount' said
    rm -r work/work/incompat/volatile
    $PYUNION mount --lower lower --upper upper --work work mnt
    unmount
    """
    assert as_user(place, way, script) == "last used by a volatile mount\n"


_BRANCHES = """
mkdir more
echo added > more/added
echo above > more/file
$PYUNION mount --lower lower --upper upper --work work mnt
cat mnt/file
$PYUNION branch add mnt more
cat mnt/file mnt/added
echo changed >> mnt/d/stays
echo outside > more/outside
$PYUNION refresh mnt
$PYUNION branch remove mnt lower
ls -R mnt
cat mnt/outside mnt/d/stays
$PYUNION umount mnt
"""


@pytest.mark.parametrize("way", _WRAPPERS)
def test_a_user_changes_the_branches_of_his_mount(place: Path, way: str) -> None:
    said = as_user(place, way, _BRANCHES)
    assert said == "lower\nabove\nadded\nmnt:\nadded\nd\nfile\noutside\n\nmnt/d:\nstays\noutside\nstays\nchanged\n"
