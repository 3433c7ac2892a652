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
from typing import Any

import pyfuse3

log = logging.getLogger(__name__)


class InFlight:
    """How many handlers have begun and not ended. Those that do not await are never seen here by anybody else."""

    count = 0


in_flight = InFlight()


def guarded(handler: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Make a request handler, synchronous or not, into what pyfuse3 calls."""
    name = handler.__name__

    def as_fuse_error(error: Exception) -> pyfuse3.FUSEError:
        if isinstance(error, OSError) and error.errno:
            return pyfuse3.FUSEError(error.errno)
        log.error("%s failed; the caller gets EIO", name, exc_info=error)
        return pyfuse3.FUSEError(EIO)

    if inspect.iscoroutinefunction(handler):

        @functools.wraps(handler)
        async def wrapper(*args: Any) -> Any:
            in_flight.count += 1
            try:
                return await handler(*args)
            except pyfuse3.FUSEError:
                raise
            except Exception as error:
                raise as_fuse_error(error) from None
            finally:
                in_flight.count -= 1

        return wrapper

    @functools.wraps(handler)
    async def sync_wrapper(*args: Any) -> Any:
        try:
            return handler(*args)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            raise as_fuse_error(error) from None

    return sync_wrapper
