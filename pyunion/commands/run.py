"""`pyunion run`: a program in an image that was imported, and what it writes is kept in upper or nowhere.

Owns the order. There are four processes: this command, the keeper of a pid namespace, the daemon that serves the union,
and the program, the first one of a pid namespace in that. What has to go with them lies in a tmpfs that is mounted in
their mount namespace only; so nothing is left, whichever of them is killed (pyunion/container/processes.py).
"""

from __future__ import annotations

import os
import secrets
import socket
from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from pyunion import background, notify, preflight
from pyunion.branch import syscalls
from pyunion.commands import given, mount
from pyunion.config import MountConfig, Options, make_config
from pyunion.container import accounts, initlayer, processes, root
from pyunion.errors import ExitCode, PyunionError
from pyunion.layers import imageconfig
from pyunion.layers.store import Store
from pyunion.layers.tree import Tree, open_branches


class _Program(NamedTuple):
    """What is to be run, and by what image's config."""

    command: list[str]
    variables: list[str]
    user: str
    workdir: str
    hostname: str


@given.failures_told()
def run(arguments: Namespace) -> int:
    if os.geteuid() != 0:
        raise PyunionError("only root can run a program in an image, as it takes namespaces and mounts; use sudo")
    if (arguments.upper is None) != (arguments.work is None):
        raise PyunionError("--upper and --work go together; name both, or neither", ExitCode.USAGE)
    if arguments.rm and arguments.upper is not None:
        raise PyunionError("--rm keeps nothing, and --upper is for what is kept; leave out one of them", ExitCode.USAGE)
    path, tag = given.image_and_tag(arguments.image)
    store = Store(path)
    name = given.only_image(store, tag)
    program = _program(arguments, imageconfig.program(store.config(name)))
    processes.block_signals()
    return processes.keep(lambda: _keep(arguments, store, name, program))


def _program(arguments: Namespace, said: imageconfig.Program) -> _Program:
    words = arguments.program[1:] if arguments.program[:1] == ["--"] else arguments.program
    command = words or said.command
    if not command:
        raise PyunionError("the image names no program; name one: pyunion run --image DEST -- CMD...", ExitCode.USAGE)
    return _Program(command, said.variables, said.user, said.workdir, secrets.token_hex(6))


@given.failures_told()
def _keep(arguments: Namespace, store: Store, name: str, program: _Program) -> int:
    """The keeper: mounts, daemon and program; returns the program's exit status."""
    config = preflight.prepare(_prepare(arguments, store, store.layers(name), program.hostname))

    def serve(ready: Callable[[], None]) -> None:
        processes.unblock_signals()
        mount.serve(config, notify.Listener(ready))

    daemon = background.run(serve)
    syscalls.unshare(syscalls.CLONE_NEWPID)
    running = processes.spawn(lambda: _become(config.mountpoint, program))
    ended, status = processes.follow([running, daemon])
    if ended == daemon or processes.end(daemon) != ExitCode.OK:
        raise PyunionError(
            "the daemon of the union has failed, and what the program wrote last may be lost; the system's log says why"
        )
    return status


def _prepare(arguments: Namespace, store: Store, layers: Sequence[bytes], hostname: str) -> MountConfig:
    """The union's branches and mount point. The list of images is not needed any more, and so its directory is what the
    tmpfs is mounted on."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.set_propagation(b"/", syscalls.MS_SLAVE)
    # of this pid namespace, in which the daemon sees who asks
    syscalls.mount(b"proc", b"/proc", b"proc", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC)
    scratch = os.path.join(os.path.realpath(store.path), b"images")
    syscalls.mount(b"pyunion", scratch, b"tmpfs", 0, b"mode=700")
    made = {part: os.path.join(scratch, part) for part in (b"init", b"upper", b"work", b"root")}
    with ExitStack() as stack:
        image: Tree | None = open_branches(None, layers, stack).below
        if image is None:
            raise PyunionError("the image has no layers", ExitCode.BRANCH)
        initlayer.make(made[b"init"], image, hostname)
        initlayer.directory(made[b"upper"], image.root_entry())
    for part in (b"work", b"root"):
        os.mkdir(made[part], 0o755)
    given_upper = arguments.upper is not None
    return make_config(
        Options(),
        lowers=[given.lower_list([made[b"init"], *layers]).encode(errors="surrogateescape")],
        upper=os.fsencode(arguments.upper) if given_upper else made[b"upper"],
        work=os.fsencode(arguments.work) if given_upper else made[b"work"],
        mountpoint=made[b"root"],
        privileged=True,
    )


@given.failures_told()
def _become(root_path: bytes, program: _Program) -> int:
    """The program, from the fork to its own first instruction. Raises PyunionError and OSError."""
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUTS)
    socket.sethostname(program.hostname)
    root.enter(root_path)
    account = accounts.find(program.user, root.text_of("/etc/passwd"), root.text_of("/etc/group"))
    root.go_to(program.workdir)
    root.become(account)
    root.forget_handlers()
    if (status := processes.told_to_end()) is not None:
        return status
    processes.unblock_signals()
    root.execute(program.command, root.environment(program.variables, account, program.hostname))
    return ExitCode.FAILURE
