"""`pyunion mount`: from the arguments to a running daemon.

Owns the order: parse, check, leave for the background, serve. What an option means is pyunion.config, what is refused
is pyunion.preflight, and what a mount is made of is pyunion.daemon.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable

from pyunion import background, logs, notify, preflight
from pyunion.config import MountConfig, Options, make_config, parse_options
from pyunion.errors import ExitCode, PyunionError, printable


def run(arguments: Namespace) -> int:
    config = preflight.prepare(_config(arguments))
    for note in config.notes:
        print(f"pyunion: {printable(note)}", file=sys.stderr)
    if config.foreground:
        _serve(config, lambda: _tell_service_manager("READY=1", config))
    else:
        background.run(lambda ready: _serve(config, ready))
    return ExitCode.OK


def _config(arguments: Namespace) -> MountConfig:
    options = Options()
    for text in arguments.options:
        parse_options(os.fsencode(text), options)
    for text in _switches(arguments):  # they come last, and so win over -o
        parse_options(text, options)
    log_file = arguments.log_file
    return make_config(
        options,
        lowers=[os.fsencode(text) for text in arguments.lower],
        upper=_encoded(arguments.upper),
        work=_encoded(arguments.work),
        mountpoint=os.fsencode(arguments.mountpoint),
        privileged=os.geteuid() == 0,
        foreground=arguments.foreground or notify.wanted(),
        log_level=arguments.log_level,
        log_file=None if log_file is None else os.path.abspath(os.fsencode(log_file)),
    )


def _switches(arguments: Namespace) -> list[bytes]:
    texts = []
    if arguments.redirect_dir:
        texts.append(b"redirect_dir=" + arguments.redirect_dir.encode())
    if arguments.metacopy:
        texts.append(b"metacopy=" + arguments.metacopy.encode())
    if arguments.aufs_whiteouts:
        texts.append(b"aufs")
    ids = {
        b"uidmapping": arguments.uid_map,
        b"gidmapping": arguments.gid_map,
        b"squash_to_uid": arguments.squash_to_uid,
        b"squash_to_gid": arguments.squash_to_gid,
    }
    return texts + [key + b"=" + os.fsencode(value) for key, value in ids.items() if value is not None]


def _encoded(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def _serve(config: MountConfig, ready: Callable[[], None]) -> None:
    logs.start(config)
    try:
        from pyunion import daemon
    except ImportError as error:
        raise PyunionError(f"{error}; run scripts/pyunion, which installs what is missing", ExitCode.FAILURE) from error
    daemon.serve(config, ready, lambda: _tell_service_manager("STOPPING=1", config))


def _tell_service_manager(state: str, config: MountConfig) -> None:
    word = "mounted on" if state == "READY=1" else "unmounting"
    notify.send(state, f"STATUS={word} {printable(os.fsdecode(config.mountpoint))}")
