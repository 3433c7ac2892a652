"""What may go wrong before and outside of a request: one sentence for the user and one exit code.

Owns the table of exit codes and how a sentence is made safe to print. Errors inside a request are errno values and
no business of this module, which imports nothing of ours.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the exit status of `pyunion` means, with a sentence for its manual page."""

    meaning: str

    OK = 0, "all is well"
    FAILURE = 1, "anything that has no number of its own"
    USAGE = 2, "the command line or an option is wrong"
    BRANCH = 3, "a branch is missing, is not a directory, or overlaps another one; no whole layer of overlay2"
    BUSY = 4, "a branch or a mount is in use"
    MOUNT = 5, "cannot mount here: no /dev/fuse, no fusermount3, no such mount point"
    WORK = 6, "upper and work cannot be used together, or not in their present state"
    CONFIG = 7, "the file of --config is missing or wrong"
    FINDINGS = 8, "check has found faults, and they are still there"
    REPAIRED = 9, "check --repair has found faults and put all of them right"
    CANNOT_RUN = 126, "run: the program cannot be executed, as shells report it"
    NOT_THERE = 127, "run: there is no such program, as shells report it"
    INTERRUPTED = 130, "Ctrl-C, as shells report it"

    def __new__(cls, value: int, meaning: str = "") -> ExitCode:
        code = int.__new__(cls, value)
        code._value_, code.meaning = value, meaning
        return code


class PyunionError(Exception):
    """A failure that the user can understand: printed as `pyunion: SENTENCE`, without a traceback.

    File names in the sentence are as os.fsdecode gives them.
    """

    def __init__(self, sentence: str, exit_code: ExitCode = ExitCode.FAILURE) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def printable(text: str) -> str:
    """The text with everything that a terminal would not show as it is (controls, undecodable bytes) escaped.

    File names are any bytes, and must neither break a message into lines nor steer the terminal.
    """
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how os.fsdecode carries a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
