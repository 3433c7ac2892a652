"""The errno boundary: what a request handler may raise, and what the kernel is told about it.

An OSError becomes its errno. Anything else is a fault of ours: it is logged with its traceback and the request
ends with EIO, the mount goes on. pyfuse3 would end the whole mount. trio.Cancelled passes.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Coroutine
from errno import EIO
from functools import partial
from typing import Any

import pyfuse3

from pyunion.fs.waiting import Question, Unanswered, patiently
from pyunion.fuse import tally

log = logging.getLogger(__name__)


class InFlight:
    """How many handlers have begun and not ended. Those that do not await are never seen here by anybody else."""

    count = 0


in_flight = InFlight()


def errno_of(error: Exception, kind: int) -> int:
    """The errno by which a request of this kind is answered."""
    number = error.errno if isinstance(error, OSError) else None
    if not number:
        log.error("%s failed; the caller gets EIO", tally.name_of(kind), exc_info=error)
        number = EIO
    tally.note_error(number)
    return number


async def _wait(again: Callable[[], Any], question: Question, kind: int) -> Any:
    """The result of a handler that has to ask first."""
    in_flight.count += 1
    try:
        return await patiently(again, question)
    except pyfuse3.FUSEError:
        raise
    except Exception as error:
        raise pyfuse3.FUSEError(errno_of(error, kind)) from None
    finally:
        in_flight.count -= 1


def guarded(handler: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Make a request handler, synchronous or not, into what pyfuse3 calls."""
    kind = tally.kind_of(handler.__name__)

    if inspect.iscoroutinefunction(handler):

        @functools.wraps(handler)
        async def wrapper(*args: Any) -> Any:
            tally.requests[kind] += 1
            in_flight.count += 1
            try:
                return await handler(*args)
            except Unanswered as unanswered:
                question = unanswered.question
            except pyfuse3.FUSEError:
                raise
            except Exception as error:
                raise pyfuse3.FUSEError(errno_of(error, kind)) from None
            finally:
                in_flight.count -= 1
            return await _wait(partial(handler, *args), question, kind)

        return wrapper

    @functools.wraps(handler)
    async def sync_wrapper(*args: Any) -> Any:
        tally.requests[kind] += 1
        try:
            return handler(*args)
        except Unanswered as unanswered:
            question = unanswered.question
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            raise pyfuse3.FUSEError(errno_of(error, kind)) from None
        return await _wait(partial(handler, *args), question, kind)

    return sync_wrapper
