"""Where the daemon's log goes: a file when one is named, the journal when stderr does, else stderr in the foreground
and the system's log in the background.

Owns the format and the choice; knows nothing of what is logged. Whatever names a message has, it is one line of the log
and steers no terminal.
"""

from __future__ import annotations

import logging
import os
import syslog
from typing import Any

from pyunion import journal
from pyunion.config import MountConfig
from pyunion.errors import ExitCode, PyunionError, printable

_PRIORITIES = {
    logging.DEBUG: syslog.LOG_DEBUG,
    logging.INFO: syslog.LOG_INFO,
    logging.WARNING: syslog.LOG_WARNING,
    logging.ERROR: syslog.LOG_ERR,
    logging.CRITICAL: syslog.LOG_CRIT,
}


class Printable(logging.Formatter):
    """A message in one line, then the lines of what was raised, if anything was; without control characters."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(printable, super().formatException(ei).splitlines()))


class _SystemLog(logging.Handler):
    """Line by line, as syslog has no lines within a message."""

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            syslog.syslog(_PRIORITIES.get(record.levelno, syslog.LOG_NOTICE), line)


def start(config: MountConfig) -> None:
    """Begin to log. In the background, warnings show on stderr too for as long as there is one."""
    logging.basicConfig(level=config.log_level.upper(), handlers=_handlers(config))


def set_level(level: str) -> None:
    """Log what is at least as urgent as this, which is one of config.LOG_LEVELS, from now on."""
    logging.getLogger().setLevel(level.upper())


def _handlers(config: MountConfig) -> list[logging.Handler]:
    line = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    if config.log_file is not None:
        path = os.fsdecode(config.log_file)
        try:
            return [_formatted(logging.FileHandler(path, encoding="utf-8"), line)]
        except OSError as error:
            raise PyunionError(f"cannot write the log file {path}: {error.strerror}", ExitCode.USAGE) from None
    if journal.gets_stderr():
        entries = journal.JournalHandler(SYSLOG_IDENTIFIER="pyunion", PYUNION_MOUNT=os.fsdecode(config.mountpoint))
        return [_formatted(entries, "%(message)s")]  # the rest are fields
    if config.foreground:
        return [_formatted(logging.StreamHandler(), line)]
    syslog.openlog("pyunion", syslog.LOG_PID, syslog.LOG_DAEMON)
    system, terminal = _SystemLog(), logging.StreamHandler()
    terminal.setLevel(logging.WARNING)
    return [_formatted(system, "%(name)s: %(message)s"), _formatted(terminal, "pyunion: %(message)s")]


def _formatted(handler: logging.Handler, form: str) -> logging.Handler:
    handler.setFormatter(Printable(form))
    return handler
