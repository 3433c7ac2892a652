"""What the machine's processors are asked for while a mount is busy (awake=auto), and that awake=off asks for nothing.

Whether anything is asked for depends on the machine, and `pyunion info` says which it is.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import pytest

from pyunion import awake
from tests.harness.mounts import PATIENCE
from tests.harness.ready import until
from tests.harness.union import Union

DEVICE = "/dev/cpu_dma_latency"
HELPS = awake.problem() is None


def latency_us() -> int:
    """What all who have the device open ask for together."""
    fd = os.open(DEVICE, os.O_RDONLY)
    try:
        return int.from_bytes(os.read(fd, 4), "little", signed=True)
    finally:
        os.close(fd)


def ask_much(at: Path) -> None:
    """A request for each of many names that are not there."""
    for number in range(1000):
        with suppress(FileNotFoundError):
            os.stat(at / f"{number}-{time.monotonic_ns()}")


def has_device(pid: int) -> bool:
    folder = f"/proc/{pid}/fd"
    return DEVICE in [os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)]


@pytest.mark.parametrize("option", ["awake=auto", "awake=off", ""])
def test_the_device_is_opened_only_where_it_helps_and_is_wanted(pyunion: Union, option: str) -> None:
    pyunion.mount(*([option] if option else []))
    assert has_device(pyunion.daemon.pid) == (HELPS and option != "awake=off")


def test_processors_are_awake_while_there_is_much_to_do_and_sleep_soon_after(pyunion: Union) -> None:
    def awake_after_much() -> bool:
        ask_much(pyunion.at)
        return latency_us() == 0

    pyunion.mount()
    if HELPS:
        until(awake_after_much, "processors sleep all the same", PATIENCE)
    ask_much(pyunion.at)
    until(lambda: latency_us() > 0, "processors are kept awake", PATIENCE)
