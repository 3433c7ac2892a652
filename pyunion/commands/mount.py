"""`pyunion mount`: from the arguments to a running daemon.

Owns the order: parse, check, leave for the background, serve; and what mount(8) and podman mean by the arguments of a
mount helper. What an option means is pyunion.config, what is refused is pyunion.preflight, and what a mount is made of
is pyunion.daemon.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from argparse import Namespace

from pyunion import background, configfile, dockerlayer, logs, notify, preflight
from pyunion.commands import remount, umount
from pyunion.config import MountConfig, Options, make_config, parse_options
from pyunion.configfile import ConfigFile
from pyunion.errors import ExitCode, PyunionError, printable


def run(arguments: Namespace) -> int:
    try:
        return _run(arguments)
    except PyunionError as error:
        if not arguments.helper:
            notify.send(f"STATUS={error}")
        raise


def _run(arguments: Namespace) -> int:
    if arguments.namespace is not None:
        raise PyunionError(
            "-N is not supported: to mount in another mount namespace, run nsenter --mount=NAMESPACE mount ...",
            ExitCode.USAGE,
        )
    if arguments.mountpoint is None:  # a single name is that of the mount point
        arguments.source, arguments.mountpoint = None, arguments.source
    file = ConfigFile() if arguments.config is None else configfile.read(arguments.config)
    options = _options(arguments, file)
    if options.remount:
        if arguments.lower or arguments.docker_layer is not None or arguments.upper or arguments.work:
            raise PyunionError(
                "a remount changes no branches; leave out --lower, --docker-layer, --upper and --work", ExitCode.USAGE
            )
        whole = _config(arguments, options, file) if arguments.config else None
        point = _mountpoint(arguments, file)
        return remount.run(options, point, whole=whole, log_level=arguments.log_level, dry=arguments.fake)
    config = _config(arguments, options, file)
    if arguments.config and not arguments.fake:
        umount.clear_dead(config.mountpoint)  # a service is started again after a crash
    config = preflight.prepare(config)
    for note in config.notes:
        print(f"pyunion: {printable(note)}", file=sys.stderr)
    if arguments.fake:
        return ExitCode.OK
    if config.foreground:
        if serve(config, notify.ServiceManager(os.fsdecode(config.mountpoint))):
            raise KeyboardInterrupt
    else:
        background.run(lambda ready: serve(config, notify.Listener(ready)))
    return ExitCode.OK


def _options(arguments: Namespace, file: ConfigFile) -> Options:
    options = Options(sloppy=arguments.sloppy)
    file.fill(options)  # first, so that the command line wins
    if arguments.lower or arguments.docker_layer is not None:
        options.lowers, options.data_only = [], 0
    if arguments.upper:
        options.upper = None
    if arguments.work:
        options.work = None
    if arguments.source:
        options.fsname = arguments.source
    podman = arguments.helper and arguments.source is None
    if podman:
        # it unpacks its images with such marks as soon as it has a mount program, and does not say so
        options.switches["aufs"] = True
    for text in arguments.options:
        parse_options(os.fsencode(text), options)
    for text in _switches(arguments):  # they come last, and so win over -o
        parse_options(text, options)
    if podman:
        # it gives the mapping along with images that it has mapped already, and prepares a container's root as our root
        options.uids = options.uids._replace(others_as_stored=True)
        options.gids = options.gids._replace(others_as_stored=True)
    if arguments.docker_layer is not None and not options.remount:
        if arguments.lower or options.lowers:
            raise PyunionError(
                "the lower branches are given twice, by --docker-layer and by --lower or -o lowerdir=; keep one",
                ExitCode.USAGE,
            )
        options.lowers = dockerlayer.branches(os.fsencode(arguments.docker_layer))
    return options


def _config(arguments: Namespace, options: Options, file: ConfigFile) -> MountConfig:
    log_file = arguments.log_file
    return make_config(
        options,
        lowers=[os.fsencode(text) for text in arguments.lower],
        upper=_encoded(arguments.upper),
        work=_encoded(arguments.work),
        mountpoint=_mountpoint(arguments, file),
        privileged=os.geteuid() == 0,
        foreground=arguments.foreground or (notify.wanted() and not arguments.helper),
        log_level=arguments.log_level or file.log_level or "info",
        log_file=None if log_file is None else os.path.abspath(os.fsencode(log_file)),
        metrics=arguments.metrics or file.metrics,
    )


def _mountpoint(arguments: Namespace, file: ConfigFile) -> bytes:
    point = file.mountpoint if arguments.mountpoint is None else os.fsencode(arguments.mountpoint)
    if point is None:
        raise PyunionError(
            "no mount point is given; name a directory, or --config with a file that does", ExitCode.USAGE
        )
    return point


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


def serve(config: MountConfig, listener: notify.Listener) -> bool:
    """Be the daemon, until the mount ends; returns whether that was by Ctrl-C. Raises PyunionError."""
    logs.start(config)
    try:
        from pyunion import daemon
    except ImportError as error:
        raise PyunionError(f"{error}; run scripts/pyunion, which installs what is missing", ExitCode.FAILURE) from error
    if listener.ping_s is not None:
        faulthandler.enable()  # the service manager ends by SIGABRT what has hung, and its log then says where
    return daemon.serve(config, listener)
