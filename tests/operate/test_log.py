"""The log of a running mount: a line for each message, whatever the names are that it has in it."""

from __future__ import annotations

import logging
import os
import re
import signal

from pyunion import logs
from tests.harness.files import write
from tests.harness.mounts import Layers, PyunionMount
from tests.harness.ready import until
from tests.harness.union import Union
from tests.harness.warm import pyunion as run_pyunion
from tests.reliability.hostile import has_control_characters

HOSTILE = os.fsdecode(b"a\n2026-01-01 00:00:00,000 ERROR pyunion: not said\x1b[31m\x7f\xff\r")
_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ \w+(\.\w+)*: .")


def test_names_neither_break_its_lines_nor_steer_the_terminal(pyunion: Union) -> None:
    """Of a mount point, branches and files; when it is busy, when branches come and go, when something is wrong."""
    base = pyunion.base / HOSTILE
    base.mkdir()
    lower, more, upper, work, at = (base / name for name in ("lower", "more", "upper", "work", "at"))
    for path in (lower, more, upper, work, at):
        path.mkdir()
    marked = write(lower / HOSTILE / HOSTILE, "text").parent
    os.setxattr(marked, "trusted.overlay.redirect", b"../\x1b\n")
    mount = PyunionMount(at)
    mount.start(Layers([lower, pyunion.low], upper, work))
    try:
        assert run_pyunion("branch", "add", at, more).returncode == 0
        assert run_pyunion("branch", "remove", at, more).returncode == 0
        with (at / HOSTILE / HOSTILE).open("rb"):
            os.kill(mount.pid, signal.SIGTERM)
            until(lambda: "busy" in mount.log(), "it does not say that it is busy", 10)
        assert mount.wait_end() == 0
    finally:
        if mount in PyunionMount.live:
            mount.abandon()
    lines = mount.log_path.read_bytes().decode(errors="strict").splitlines()
    assert [line for line in lines if not _LINE.match(line) or has_control_characters(line)] == []
    assert [line for line in lines if "not said" in line and " ERROR " in line.split("not said")[0][:40]] == []
    said = "\n".join(lines)
    assert ("the lower branches are" in said, "is busy" in said, "unusable redirect" in said) == (True, True, True)


def test_what_was_raised_has_lines_and_no_control_characters() -> None:
    record = logging.LogRecord("some", logging.ERROR, __file__, 1, "%s failed", (HOSTILE,), None)
    try:
        raise FileNotFoundError(2, "not there", HOSTILE) from ValueError("\x1b[31m")
    except FileNotFoundError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    first, *more = logs.Printable("%(name)s: %(message)s").format(record).splitlines()
    assert first.startswith(r"some: a\n2026-01-01")
    assert more[0] == r"ValueError: \x1b[31m"
    assert more[-1].startswith("FileNotFoundError: ")
    assert not has_control_characters("\n".join([first, *more]))
