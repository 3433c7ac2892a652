"""`pyunion mount`: from the arguments to a running daemon.

Owns the order: parse, check, leave for the background, serve; and what mount(8) and podman mean by the arguments of a
mount helper. What an option means is pyunion.config, what is refused is pyunion.preflight, and what a mount is made of
is pyunion.daemon.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Callable

from pyunion import background, logs, notify, preflight
from pyunion.commands import remount
from pyunion.config import MountConfig, Options, make_config, parse_options
from pyunion.errors import ExitCode, PyunionError, printable

_READY, _STOPPING = "READY=1", "STOPPING=1"


def run(arguments: Namespace) -> int:
    if arguments.namespace is not None:
        raise PyunionError(
            "-N is not supported: to mount in another mount namespace, run nsenter --mount=NAMESPACE mount ...",
            ExitCode.USAGE,
        )
    options = _options(arguments)
    if options.remount:
        if arguments.lower or arguments.upper or arguments.work:
            raise PyunionError("a remount changes no branches; leave out --lower, --upper and --work", ExitCode.USAGE)
        return remount.run(options, os.fsencode(arguments.mountpoint), dry=arguments.fake)
    config = preflight.prepare(_config(arguments, options))
    for note in config.notes:
        print(f"pyunion: {printable(note)}", file=sys.stderr)
    if arguments.fake:
        return ExitCode.OK
    if config.foreground:
        _serve(config, lambda state: _tell_service_manager(state, config))
    else:
        background.run(lambda ready: _serve(config, lambda state: ready() if state == _READY else None))
    return ExitCode.OK


def _options(arguments: Namespace) -> Options:
    options = Options(sloppy=arguments.sloppy)
    if arguments.source:
        options.fsname = arguments.source
    if arguments.helper and arguments.source is None:
        # podman, which unpacks its images with such marks as soon as it has a mount program, and does not say so
        options.switches["aufs"] = True
    for text in arguments.options:
        parse_options(os.fsencode(text), options)
    for text in _switches(arguments):  # they come last, and so win over -o
        parse_options(text, options)
    return options


def _config(arguments: Namespace, options: Options) -> MountConfig:
    log_file = arguments.log_file
    return make_config(
        options,
        lowers=[os.fsencode(text) for text in arguments.lower],
        upper=_encoded(arguments.upper),
        work=_encoded(arguments.work),
        mountpoint=os.fsencode(arguments.mountpoint),
        privileged=os.geteuid() == 0,
        foreground=arguments.foreground or (notify.wanted() and not arguments.helper),
        log_level=arguments.log_level,
        log_file=None if log_file is None else os.path.abspath(os.fsencode(log_file)),
    )


def _switches(arguments: Namespace) -> list[bytes]:
    texts = []
    if arguments.redirect_dir:
        texts.append(b"redirect_dir=" + arguments.redirect_dir.encode())
    if arguments.passthrough:
        texts.append(b"passthrough=" + arguments.passthrough.encode())
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


def _serve(config: MountConfig, tell: Callable[[str], None]) -> None:
    logs.start(config)
    try:
        from pyunion import daemon
    except ImportError as error:
        raise PyunionError(f"{error}; run scripts/pyunion, which installs what is missing", ExitCode.FAILURE) from error
    daemon.serve(config, lambda: tell(_READY), lambda: tell(_STOPPING))


def _tell_service_manager(state: str, config: MountConfig) -> None:
    word = "mounted on" if state == _READY else "unmounting"
    notify.send(state, f"STATUS={word} {printable(os.fsdecode(config.mountpoint))}")
