"""The command line: which commands and switches there are, and how a failure is told.

Owns argparse, the exit status, and that mount(8) and podman need not name a command. Every command is a module of
pyunion.commands, imported when it is called, so that `--help` and refusals cost no import of trio, pyfuse3 or rich.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from pyunion import __version__, cli_layers
from pyunion.config import LOG_LEVELS
from pyunion.errors import ExitCode, PyunionError, printable

_OPTIONS = """\
options of -o, comma separated (\\, and \\: stand for the characters in a path):
  lowerdir=A:B upperdir=U workdir=W   as --lower, --upper and --work
  lowerdir+=A                         one more lower branch, below those before it
  ro, rw                              a read-only union, whatever the branches are
  redirect_dir=on|follow|nofollow|off
                                      whether renaming a directory of a lower branch writes a redirect
  metacopy=on|off                     copy up only metadata where that is enough
  index=on|off                        names of a hard-linked lower file stay one file (the default where it works)
  volatile                            no fsync of the branches, and a mark in W that stops a later mount
  userxattr                           marks in user.overlay.* instead of trusted.overlay.*
  aufs, noaufs                        honour .wh. marks in lower branches, or not (the default, but for podman)
  passthrough=auto|all|off            let the kernel read and write files of upper by itself, where it can (all: and
                                      read lower ones, by descriptors that do not see what is written later)
  awake=auto|off                      as root in a virtual machine: its processors do not sleep while requests come in
                                      quick succession (the default), or do
  writeback, nowriteback              where it cannot: let it collect writes (the default), or not
  uidmapping=STORED:SHOWN:COUNT       and gidmapping=, squash_to_uid=, squash_to_gid=, squash_to_root: owners
  fsname=NAME                         the source that mount(8) shows, as SRC
  suid, dev, exec, atime, sync        and their opposites, as for every mount
  remount                             give the mount that is there other ones of these, or ro and rw
What fstab and container tools add (x-*, _netdev, nofail, defaults, xino=..., context=...) is accepted, and so is what
tunes fuse-overlayfs (fast_ino, max_threads, ...); fsync=0 is volatile without the mark.
"""
_VERSION = f"pyunion {__version__}"
_HELPER = ("mount", "--helper")
_EXIT_CODES = "exit status: " + ", ".join(f"{code.value} {code.name.lower()}" for code in ExitCode)


class _Parser(argparse.ArgumentParser):
    _inside = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Options may stand between two paths of which the second one may be left out: argparse would have left it
        out as soon as it saw the first one."""
        kinds = {action.nargs for action in self._get_positional_actions()}
        if self._inside or argparse.OPTIONAL not in kinds or kinds & {argparse.REMAINDER, argparse.PARSER}:
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False

    def error(self, message: str) -> NoReturn:
        raise PyunionError(f"{message}; see `{self.prog} --help`", ExitCode.USAGE)


def main(argv: list[str] | None = None) -> int:
    """Run one command; the return value is the exit status."""
    words = sys.argv[1:] if argv is None else argv
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # who ignores it, as our caller may, cannot wait for a child
    try:
        arguments = make_parser().parse_args(_with_command(words))
        command = importlib.import_module(f"pyunion.commands.{arguments.command.replace('-', '_')}")
        status = int(command.run(arguments))
        sys.stdout.flush()
        return status
    except PyunionError as error:
        print(f"pyunion: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return _end_by_ctrl_c()
    except BrokenPipeError:
        # the reader has seen enough; Python's own flush at exit must not complain about it either
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return ExitCode.FAILURE


def _end_by_ctrl_c() -> int:
    """By the signal itself: a shell that sees a status instead goes on with the loop or script that we are part of."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)
    return ExitCode.INTERRUPTED  # where it is blocked


def mount_helper() -> int:
    """The programs mount.pyunion and mount.fuse.pyunion, which mount(8) runs for a type, and podman for a container."""
    return main([*_HELPER, *sys.argv[1:]])


def _with_command(words: list[str]) -> list[str]:
    """mount(8) without a helper, and podman that was given `pyunion` itself, say `pyunion [SRC] MNT -o OPTIONS`."""
    named = bool(words) and words[0] in _COMMANDS
    return words if named or not any(word.startswith("-o") for word in words) else [*_HELPER, *words]


def make_parser() -> argparse.ArgumentParser:
    """All commands with all that they take: also what shell completion and the man page are made from."""
    parser = _Parser(
        prog="pyunion",
        description="Read-only branches and one writable branch as one tree.",
        epilog=_EXIT_CODES,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=_VERSION)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in _COMMANDS.values():
        add(commands)
    parser.set_defaults(parser=parser)  # for `pyunion completion`
    return parser


def _add_mount(commands: argparse._SubParsersAction[_Parser]) -> None:
    mount = commands.add_parser(
        "mount",
        help="mount a union of branches; returns when the mount answers",
        description="Mount a union of branches. Returns when the mount answers, or says why it does not.",
        epilog=_OPTIONS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    mount.add_argument("source", nargs="?", metavar="SRC", help="a name that mount(8) shows and fstab has; any will do")
    mount.add_argument("mountpoint", nargs="?", metavar="MNT", help="the directory on which the union appears")
    mount.add_argument("--config", metavar="FILE", help="a TOML file with all of this; the command line comes first")
    mount.add_argument(
        "--lower",
        action="append",
        default=[],
        metavar="DIR[:DIR...]",
        help="the read-only branches, topmost first; may be repeated; '\\:' is a colon in a path",
    )
    mount.add_argument(
        "--docker-layer",
        metavar="DIR",
        help="instead of --lower: a layer of Docker, /var/lib/docker/overlay2/ID, and those below it",
    )
    mount.add_argument("--upper", metavar="DIR", help="the writable branch above them all")
    mount.add_argument("--work", metavar="DIR", help="an empty directory on the file system of the upper branch")
    mount.add_argument("-o", dest="options", action="append", default=[], metavar="OPTIONS", help="see below")
    mount.add_argument("--redirect-dir", choices=("on", "off"), help="as -o redirect_dir=")
    mount.add_argument("--metacopy", choices=("on", "off"), help="as -o metacopy=")
    mount.add_argument("--passthrough", choices=("auto", "all", "off"), help="as -o passthrough=")
    mount.add_argument("--aufs-whiteouts", action="store_true", help="as -o aufs")
    mount.add_argument("--uid-map", metavar="STORED:SHOWN:COUNT", help="as -o uidmapping=: users by other numbers")
    mount.add_argument("--gid-map", metavar="STORED:SHOWN:COUNT", help="as -o gidmapping=: groups by other numbers")
    mount.add_argument("--squash-to-uid", metavar="UID", help="as -o squash_to_uid=: show one owner for all")
    mount.add_argument("--squash-to-gid", metavar="GID", help="as -o squash_to_gid=: show one group for all")
    mount.add_argument("--foreground", action="store_true", help="stay; so does a service that sets NOTIFY_SOCKET")
    mount.add_argument("--log-file", metavar="FILE", help="log there instead of to stderr or the system's log")
    mount.add_argument("--log-level", choices=LOG_LEVELS, help="the default is info")
    mount.add_argument("--metrics", metavar="HOST:PORT", help="serve Prometheus metrics there (port 0: a free one)")
    helper = mount.add_argument_group("as mount(8) and podman call it", "Without an effect: -n, -t TYPE and -v.")
    helper.add_argument(
        "--helper", action="store_true", help="never stay by NOTIFY_SOCKET; and -o aufs, if there is no SRC (podman)"
    )
    helper.add_argument("-s", dest="sloppy", action="store_true", help="pass over unknown options of -o")
    helper.add_argument("-f", dest="fake", action="store_true", help="check everything, and do not mount")
    helper.add_argument("-N", dest="namespace", metavar="NAMESPACE", help="refused: enter the namespace first")
    helper.add_argument("-V", "--version", action="version", version=_VERSION)
    for switch, action in {"-n": "store_true", "-v": "store_true", "-t": "store"}.items():
        helper.add_argument(switch, dest="ignored", action=action, help=argparse.SUPPRESS)


def _add_umount(commands: argparse._SubParsersAction[_Parser]) -> None:
    umount = commands.add_parser(
        "umount",
        help="unmount, wait until everything is written, and say who keeps it busy",
        allow_abbrev=False,
    )
    umount.add_argument("mountpoint", nargs="?", metavar="MNT")
    umount.add_argument("--config", metavar="FILE", help="take the mount point from there")
    umount.add_argument("--lazy", action="store_true", help="detach it now, and let it end with its last user")
    umount.add_argument("--dead", action="store_true", help="only if its daemon is gone; anything else is left alone")


def _add_info(commands: argparse._SubParsersAction[_Parser]) -> None:
    info = commands.add_parser(
        "info",
        help="what this machine, and each BRANCH, can do",
        description="What this machine, and each BRANCH, can do, and why not more.",
        allow_abbrev=False,
    )
    info.add_argument("branches", nargs="*", metavar="BRANCH")
    info.add_argument("--probe", action="store_true", help="try it out in a temporary directory inside each BRANCH")
    info.add_argument("--json", action="store_true", help="for programs")


def _add_demo(commands: argparse._SubParsersAction[_Parser]) -> None:
    demo = commands.add_parser(
        "demo", help="make three small branches, mount them, and show what happens where", allow_abbrev=False
    )
    demo.add_argument("--keep", action="store_true", help="leave it mounted")


def _add_status(commands: argparse._SubParsersAction[_Parser]) -> None:
    status = commands.add_parser(
        "status", help="how the mounted unions, or one of them, are doing", allow_abbrev=False
    )
    status.add_argument("mountpoint", nargs="?", metavar="MNT")
    status.add_argument("--json", action="store_true", help="for programs")


def _add_top(commands: argparse._SubParsersAction[_Parser]) -> None:
    top = commands.add_parser(
        "top",
        help="what a union is busy with, second by second",
        description="Requests by kind with their latency, and the busiest paths and processes. What takes time to "
        "record is recorded only while this runs.",
        allow_abbrev=False,
    )
    top.add_argument("mountpoint", metavar="MNT")
    top.add_argument("--interval", type=_seconds, default=2.0, metavar="S", help="between two reports; 2 by default")
    top.add_argument("--once", action="store_true", help="one report, after one interval")
    top.add_argument("--json", action="store_true", help="for programs: a line for each report")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 60:
        raise argparse.ArgumentTypeError("from 0.1 to 60 seconds")
    return value


def _add_log_level(commands: argparse._SubParsersAction[_Parser]) -> None:
    level = commands.add_parser(
        "log-level", help="say or change how much a running mount logs", allow_abbrev=False
    )
    level.add_argument("mountpoint", metavar="MNT")
    level.add_argument("level", nargs="?", choices=LOG_LEVELS, metavar="LEVEL")


def _add_branch(commands: argparse._SubParsersAction[_Parser]) -> None:
    branch = commands.add_parser(
        "branch",
        help="add a lower branch to a mounted union, or remove one",
        description="Add the lower branch DIR to a mounted union, or remove it. Returns when everybody sees it; open "
        "files go on. What is in the upper branch stays, and what would be lost with a branch keeps it from going. "
        "`pyunion status MNT` lists the branches.",
        allow_abbrev=False,
    )
    branch.add_argument("action", choices=("add", "remove"))
    branch.add_argument("mountpoint", metavar="MNT")
    branch.add_argument("directory", metavar="DIR")
    place = branch.add_mutually_exclusive_group()
    place.add_argument("--position", type=_position, metavar="N", help="as lower branch number N, counted from the top")
    place.add_argument(
        "--top", dest="position", action="store_const", const=1, help="above the others, and below upper; the default"
    )
    place.add_argument("--bottom", dest="position", action="store_const", const=0, help="below the others")


def _position(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("from 1, which is the top")
    return value


def _add_refresh(commands: argparse._SubParsersAction[_Parser]) -> None:
    refresh = commands.add_parser(
        "refresh",
        help="show what was changed in the lower branches from outside",
        description="Show what was changed in the lower branches from outside. Until then it may or may not be seen.",
        allow_abbrev=False,
    )
    refresh.add_argument("mountpoint", metavar="MNT")


def _add_which(commands: argparse._SubParsersAction[_Parser]) -> None:
    which = commands.add_parser(
        "which",
        help="which branch a path of a union comes from, and what hides what",
        description="Which branch each PATH of a union comes from, and what every branch has there. The exit status is "
        "1 if the union does not show one of them.",
        allow_abbrev=False,
    )
    which.add_argument("paths", nargs="+", metavar="PATH", help="below a mount point; it need not exist")
    which.add_argument("--json", action="store_true", help="for programs")


def _add_tree(commands: argparse._SubParsersAction[_Parser]) -> None:
    tree = commands.add_parser("tree", help="draw a union, and where each part comes from", allow_abbrev=False)
    tree.add_argument("mountpoint", metavar="MNT")
    tree.add_argument("directory", nargs="?", default="", metavar="DIR", help="draw this directory of the union only")
    tree.add_argument("--depth", type=int, metavar="N", help="draw so many levels")


def _add_units(commands: argparse._SubParsersAction[_Parser]) -> None:
    units = commands.add_parser("units", help="for systemd: which mounts the services need", allow_abbrev=False)
    units.add_argument("directory", metavar="DIR", help="where to write drop-ins, as systemd tells its generators")
    units.add_argument("--configs", metavar="DIR", default="/etc/pyunion", help="where NAME.toml are (%(default)s)")


def _add_completion(commands: argparse._SubParsersAction[_Parser]) -> None:
    completion = commands.add_parser(
        "completion",
        help="for shells: what they read to complete the words of pyunion",
        description="Print what a shell reads to complete the words of pyunion. scripts/install puts it in its place.",
        allow_abbrev=False,
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"), metavar="SHELL", help="%(choices)s")


_COMMANDS: dict[str, Callable[[argparse._SubParsersAction[_Parser]], None]] = {
    "mount": _add_mount,
    "umount": _add_umount,
    "info": _add_info,
    "status": _add_status,
    "top": _add_top,
    "log-level": _add_log_level,
    "branch": _add_branch,
    "refresh": _add_refresh,
    "which": _add_which,
    "tree": _add_tree,
    "demo": _add_demo,
    "units": _add_units,
    **cli_layers.COMMANDS,
    "completion": _add_completion,
}
