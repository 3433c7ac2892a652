"""A signal ends the run in order: the try that is under way is finished, so that nothing stays mounted or running."""

from __future__ import annotations

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_got: list[int] = []


def listen() -> None:
    for number in SIGNALS:
        signal.signal(number, _note)


def asked() -> int:
    """The signal that has come, or 0."""
    return _got[0] if _got else 0


def _note(number: int, _frame: FrameType | None) -> None:
    _got.append(number)
