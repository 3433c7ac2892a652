"""What a daemon says of itself can be read as long as it lives, and nothing is read of others."""

from __future__ import annotations

import os

from pyunion import board
from pyunion.config import MountConfig


def test_what_is_published_can_be_read() -> None:
    config = MountConfig(lowers=(b"/l", b"/\xff"), upper=b"/u", work=b"/w", mountpoint=b"/m", volatile=True)
    fd = board.publish(config, index=7)
    try:
        said = board.read(os.getpid())
    finally:
        os.close(fd)
    assert said is not None
    assert said.pop("daemon") == {"index": 7}, "which is also the name of an option"
    assert said == board.plain({name: getattr(config, name) for name in said})
    assert [os.fsencode(path) for path in said["lowers"]] == [b"/l", b"/\xff"]
    assert said["volatile"] is True


def test_other_processes_say_nothing() -> None:
    assert board.read(os.getpid()) is None
