"""The branches that a command line names, for those commands that read them without a mount."""

from __future__ import annotations

import os
import re
import signal
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NoReturn

from pyunion.config import split_lowers
from pyunion.errors import ExitCode, PyunionError
from pyunion.layers.store import Store
from pyunion.layers.tree import Branches, open_branches
from pyunion.union import marks


@contextmanager
def failures_told() -> Iterator[None]:
    """What a system call refuses ends the command with a sentence, and not with a traceback."""
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        name = error.filename2 or error.filename
        what = "a branch or an image" if name is None else os.fsdecode(name) if isinstance(name, bytes) else str(name)
        raise PyunionError(f"cannot read or write {what}: {error.strerror}") from None


@contextmanager
def ended_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP end the command as Ctrl-C does: what was begun is removed."""

    def end(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    heeded = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def branches(arguments: Namespace, stack: ExitStack, *, writable: bool = False) -> Branches:
    """--upper, --lower and --userxattr, opened, upper for writing if asked for; `stack` closes them.

    Raises PyunionError.
    """
    lowers, data_only = split_lowers([os.fsencode(text) for text in arguments.lower])
    return open_branches(
        os.fsencode(arguments.upper),
        lowers,
        stack,
        data_only=data_only,
        prefix=marks.USER if arguments.userxattr else None,
        writable=writable,
    )


def layout_and_tag(text: str) -> tuple[bytes, str]:
    """DIR[:TAG], where a directory may have colons if it has a tag behind it, or is there."""
    path, colon, tag = text.rpartition(":")
    if not colon or os.path.isdir(text) or "/" in tag:
        path, tag = text, "latest"
    if not path or not _TAG.fullmatch(tag):
        raise PyunionError(f"'{text}' is not DIR[:TAG]; a tag is letters, digits, '.', '_' and '-'", ExitCode.USAGE)
    return os.fsencode(path), tag


def image_and_tag(text: str) -> tuple[bytes, str | None]:
    """SOURCE[:TAG], where the tag may have colons of its own (docker's NAME:TAG)."""
    path = text
    while not os.path.exists(path) and ":" in path:
        path = path.rpartition(":")[0]
    if not os.path.exists(path):
        raise PyunionError(f"{text} does not exist; correct the path", ExitCode.BRANCH)
    return os.fsencode(path), text[len(path) + 1 :] or None


def only_image(store: Store, name: str | None) -> str:
    """The name of an image of a store; without one, of its only image."""
    names = store.names()
    if name is None and len(names) == 1:
        return names[0]
    if name is None:
        raise PyunionError(f"name one of the images: {', '.join(names) or 'there are none'}", ExitCode.USAGE)
    return name


def lower_list(paths: Sequence[bytes]) -> str:
    """Branches as --lower takes them."""
    return ":".join(re.sub(r"([\\:])", r"\\\1", os.fsdecode(path)) for path in paths)


def source_date_epoch(arguments: Namespace) -> int | None:
    """--source-date-epoch, or the environment's (reproducible-builds.org), in seconds since 1970."""
    text = arguments.source_date_epoch or os.environ.get("SOURCE_DATE_EPOCH")
    if text is None or text == "":
        return None
    if not text.isdecimal():
        raise PyunionError(f"--source-date-epoch takes seconds since 1970, and '{text}' is none", ExitCode.USAGE)
    return int(text)
