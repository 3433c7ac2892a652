"""What a request handler may raise, and what becomes of it."""

from __future__ import annotations

import errno
import logging

import pyfuse3
import pytest
import trio

from pyunion.fuse.guard import guarded, in_flight


class Handlers:
    """Handlers that end in every way a handler can end."""

    @guarded
    def returns(self, value: int) -> int:
        return value + 1

    @guarded
    def has_errno(self) -> None:
        raise PermissionError(errno.EPERM, "no")

    @guarded
    async def has_errno_after_waiting(self) -> None:
        await trio.lowlevel.checkpoint()
        raise OSError(errno.ENOSPC, "full")

    @guarded
    def refuses(self) -> None:
        raise pyfuse3.FUSEError(errno.ENOSYS)

    @guarded
    async def is_wrong(self) -> None:
        await trio.lowlevel.checkpoint()
        raise KeyError("a fault of ours")

    @guarded
    def has_no_errno(self) -> None:
        raise OSError("a sentence only")

    @guarded
    async def waits(self) -> None:
        await trio.sleep_forever()


async def test_results_pass() -> None:
    assert await Handlers().returns(1) == 2


@pytest.mark.parametrize(
    ("name", "number"),
    [("has_errno", errno.EPERM), ("has_errno_after_waiting", errno.ENOSPC), ("refuses", errno.ENOSYS)],
)
async def test_an_errno_reaches_the_caller_and_is_nothing_to_log(
    name: str, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await getattr(Handlers(), name)()
    assert caught.value.errno == number
    assert caplog.records == []


@pytest.mark.parametrize("name", ["is_wrong", "has_no_errno"])
async def test_a_fault_of_ours_is_eio_with_a_traceback(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await getattr(Handlers(), name)()
    assert caught.value.errno == errno.EIO
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert name in record.getMessage()


async def test_cancellation_passes_and_nothing_stays_counted() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Handlers().waits)
        await trio.testing.wait_all_tasks_blocked()
        assert in_flight.count == 1
        nursery.cancel_scope.cancel()
    assert in_flight.count == 0
