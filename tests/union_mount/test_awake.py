"""What the machine's processors are asked for while a mount is busy (awake=auto), and that awake=off asks for nothing.

Whether anything is asked for depends on the machine, and `pyunion info` says which it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pyunion import awake
from tests.harness.union import Union

DEVICE = "/dev/cpu_dma_latency"
PATIENCE_S = 60
HELPS = awake.problem() is None


def latency_us() -> int:
    """What all who have the device open ask for together."""
    fd = os.open(DEVICE, os.O_RDONLY)
    try:
        return int.from_bytes(os.read(fd, 4), "little", signed=True)
    finally:
        os.close(fd)


def await_latency(wanted: Callable[[int], bool], meanwhile: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not wanted(latency_us()):
        assert time.monotonic() < deadline
        meanwhile()


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
    pyunion.mount()
    if HELPS:
        await_latency(lambda latency: latency == 0, lambda: ask_much(pyunion.at))
    ask_much(pyunion.at)
    await_latency(lambda latency: latency > 0, lambda: time.sleep(0.01))
