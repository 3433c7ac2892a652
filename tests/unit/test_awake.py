"""Processors are kept awake while there are many requests, and no longer.

The kernel says by /dev/cpu_dma_latency what all who have it open ask for together.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest

from pyunion import awake
from pyunion.awake import Awake

NONE, ANY = 0, 2000 * 10**6  # us, as in Documentation/power/pm_qos_interface.rst


class Device:
    """A pipe in place of the kernel's, and a clock that stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(awake, "_clock", lambda: self.now)
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)
        self.awake = Awake(self.writer)

    def requests(self, a_second: int, seconds: float) -> None:
        """In turns of two milliseconds, as the leader counts them."""
        for _ in range(round(seconds * 500)):
            self.now += 0.002
            self.awake.note(a_second // 500)

    def asked(self) -> list[int]:
        """What was asked for since the last time."""
        try:
            data = os.read(self.reader, 4096)
        except BlockingIOError:
            return []
        return [number for (number,) in struct.iter_unpack("=i", data)]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    made = Device(monkeypatch)
    yield made
    made.awake.close()
    os.close(made.reader)


def test_many_requests_are_worth_it_once(device: Device) -> None:
    device.requests(10_000, 1)
    assert device.asked() == [NONE]
    device.awake.release()
    device.awake.release()
    assert device.asked() == [ANY]


def test_few_requests_are_not_and_end_it(device: Device) -> None:
    device.requests(500, 1)
    assert device.asked() == []
    device.requests(10_000, 1)
    device.requests(500, 1)
    assert device.asked() == [NONE, ANY]


def test_a_burst_counts_by_its_own_time_and_not_by_the_quiet_before(device: Device) -> None:
    device.now += 3600
    device.requests(10_000, 0.02)
    assert device.asked() == [NONE]


def test_nothing_is_asked_for_without_a_device_or_once_it_fails(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = Awake(-1)
    for _ in range(3):
        device.now += 1
        nobody.note(10**6)
    assert not nobody.held
    broken = Awake(os.open(os.devnull, os.O_RDONLY))
    for _ in range(3):
        device.now += 1
        broken.note(10**6)
    assert not broken.held
    assert caplog.text.count("processors sleep as they like") == 1
