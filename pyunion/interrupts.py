"""Ctrl-C that waits: where something that was made must be seen to before anything can go wrong.

Owns the handler of SIGINT meanwhile. What is done afterwards, or removed, is known to those who ask for it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

LetIn = Callable[[], AbstractContextManager[None]]


@contextmanager
def put_off() -> Iterator[LetIn]:
    """Ctrl-C comes at the end of the block, as KeyboardInterrupt; at once within let_in(), which the block is given.

    Where one waits already, or does not come at all, everything stays so.
    """
    come = signal.default_int_handler
    if signal.getsignal(signal.SIGINT) is not come or threading.current_thread() is not threading.main_thread():
        yield nullcontext
        return
    waiting: list[int] = []

    def wait() -> None:
        signal.signal(signal.SIGINT, lambda number, _: waiting.append(number))

    def let_come() -> None:
        signal.signal(signal.SIGINT, come)
        if waiting:
            raise KeyboardInterrupt

    @contextmanager
    def let_in() -> Iterator[None]:
        try:
            let_come()
            yield
        finally:
            wait()

    wait()
    try:
        yield let_in
    finally:
        let_come()
