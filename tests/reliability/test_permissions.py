"""Every kind of caller makes every operation, on objects of several modes: the verdicts are those of the same tree on
the machine's own disk, and so is what is there afterwards."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tests.harness.files import PYTHON
from tests.harness.snapshot import assert_same, snapshot
from tests.harness.union import Union
from tests.reliability import callers

OWNER, ANOTHER = 1000, 1003
_IDS = "setpriv --clear-groups --reuid {} --regid {}".format
_CAPABLE = "setpriv --clear-groups --reuid 1002 --regid 1002 --inh-caps -all,+{0} --ambient-caps -all,+{0}".format
CALLERS = {
    "root": "setpriv --clear-groups",
    "owner": _IDS(OWNER, OWNER),
    "group": _IDS(1001, OWNER),
    "supplementary group": f"setpriv --groups {OWNER} --reuid 1001 --regid 1001",
    "other": _IDS(1002, 1002),
    "dac_override": _CAPABLE("dac_override"),
    "fowner": _CAPABLE("fowner"),
    "root of a user namespace": f"{_IDS(OWNER, OWNER)} unshare --user --map-root-user",
}


def fill(root: Path) -> None:
    """An object for each operation and mode."""
    root.mkdir()
    root.chmod(0o777)
    for operation in callers.ON_FILES:
        for mode in callers.FILE_MODES:
            _file(root / callers.place(operation, mode), OWNER, mode)
    for operation in callers.ON_DIRECTORIES:
        for mode in callers.DIRECTORY_MODES:
            directory = root / callers.place(operation, mode)
            directory.mkdir()
            _file(directory / "his", OWNER, 0o644)
            _file(directory / "another", ANOTHER, 0o644)
            (directory / "empty").mkdir()
            os.chown(directory / "empty", OWNER, OWNER)
            os.chown(directory, OWNER, OWNER)
            directory.chmod(mode)
            if mode in callers.DIRECTORIES_WITH_ACL:
                _give_acl(directory, mode >> 3 & 7)


def _file(path: Path, owner: int, mode: int) -> None:
    path.write_text("some text")
    os.setxattr(path, "user.there", b"value")
    os.chown(path, owner, owner)
    path.chmod(mode)
    if mode in callers.FILES_WITH_ACL:
        _give_acl(path, mode >> 3 & 7)


def _give_acl(path: Path, mask: int) -> None:
    """More for one of the callers by his name, and for one by his group, than there is for their classes."""
    entries = [(1, 7, -1), (2, 7, 1002), (4, 4, -1), (8, 6, 1001), (16, mask, -1), (32, 0, -1)]
    value = struct.pack("=I", 2) + b"".join(struct.pack("=HHi", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", value)


def verdicts(caller: str, script: Path, root: Path) -> dict[str, object]:
    command = [*CALLERS[caller].split(), PYTHON, str(script), str(root)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd="/")
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("caller", CALLERS)
def test_verdicts_are_those_of_a_local_file_system(pyunion: Union, caller: str) -> None:
    script = pyunion.base / "callers.py"  # where every user can read it
    shutil.copyfile(callers.__file__, script)
    script.chmod(0o644)
    fill(pyunion.base / "plain")
    fill(pyunion.low / "below")
    fill(pyunion.top / "above")
    pyunion.mount("volatile")  # a thousand copies need not wait for the disk
    expected = verdicts(caller, script, pyunion.base / "plain")
    assert len(expected) > 300
    assert {"EACCES", "EPERM"} & set(map(str, expected.values())) or caller == "root"
    for where in ("below", "above"):
        found = verdicts(caller, script, pyunion.at / where)
        wrong = {name: (expected[name], found[name]) for name in expected if expected[name] != found[name]}
        assert wrong == {}, where
        plain = snapshot(pyunion.base / "plain", times=False)
        assert_same(plain, snapshot(pyunion.at / where, times=False), "the trees differ (plain | union)")
