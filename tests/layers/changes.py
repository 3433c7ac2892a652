"""Branches with something of each kind, and changes of each kind to their union."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.harness.files import append, make_opaque, make_whiteout, write
from tests.harness.union import Union


def fill(union: Union) -> None:
    for number, low in enumerate((union.low, union.low2, union.low3)):
        write(low / f"only{number}/sub/f", "f")
        write(low / "merged" / f"f{number}", f"f{number}")
        write(low / "merged/deep" / f"g{number}", f"g{number}")
    write(union.low2 / "moved/x/y", "y")
    write(union.low3 / "moved/x/z", "z")
    write(union.low3 / "replaced/old", "old")
    write(union.low2 / "file", "file")
    make_whiteout(union.low / "merged/f2")
    make_opaque(union.low / "only2")


def change(at: Path) -> None:
    append(at / "file", "more")
    (at / "merged/f1").unlink()
    (at / "merged/deep/g0").chmod(0o600)
    os.setxattr(at / "merged/deep/g1", "user.mark", b"x")
    (at / "moved").rename(at / "merged/here")
    shutil.rmtree(at / "replaced")
    (at / "replaced").mkdir()
    write(at / "replaced/new", "new")
    write(at / "merged/f2", "again")
    (at / "only0/sub").rename(at / "only1/bus")
    (at / "only1/bus/f").rename(at / "only1/bus/ff")
    (at / "only1/sub").chmod(0o700)
    shutil.rmtree(at / "only2")


