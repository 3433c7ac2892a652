"""The command line of those commands that work on layers, and mount nothing.

Owns their switches. Imports nothing of ours, and so costs no start of a mount anything.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

_Commands = Any  # argparse._SubParsersAction of a parser class that belongs to pyunion.cli


_GOES_ON = (
    "If it is interrupted, the same command goes on with what is done, which is in .pyunion-half-* beside NEW. A work\n"
    "of other layers there is refused; to give it up, remove that directory."
)

_INDEX = (
    "A lower file with several names may have been changed by a name that is gone by now. What the others show then\n"
    "is in the index of the work directory, and --lower and --work are needed to tell."
)


def _add(commands: _Commands, name: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=description[0].lower() + description[1:].partition(".")[0],
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return parser


def _add_work(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--work", metavar="DIR", help="of the upper branch; needless while that is mounted")


def _add_branches(parser: argparse.ArgumentParser, *, lower_help: str) -> None:
    parser.add_argument("--lower", action="append", default=[], metavar="DIR[:DIR...]", help=lower_help)
    parser.add_argument("--userxattr", action="store_true", help="marks are user.overlay.*, as with -o userxattr")


def _add_diff(commands: _Commands) -> None:
    diff = _add(
        commands,
        "diff",
        "What an upper branch changes.",
        "A is added, C changed (a directory: also in it), D deleted. Only metadata are read. Without --lower, what a\n"
        "copy comes from is known by its origin mark alone; a moved directory is then listed without its lower parts.\n"
        + _INDEX,
    )
    diff.add_argument("--upper", required=True, metavar="DIR")
    _add_branches(diff, lower_help="the lower branches below it, as for mount")
    _add_work(diff)
    diff.add_argument("--json", action="store_true", help="for programs, with sizes, types and what has changed")


def _add_check(commands: _Commands) -> None:
    check = _add(
        commands,
        "check",
        "Whether upper and work are sound.",
        "Names each fault in a sentence, and changes nothing without --repair. Nothing is lost by a repair: what\n"
        "might be data is moved to WORK/aside, and what cannot be put right stays. Refused while it is mounted.\n\n"
        "exit status: 0 sound, 8 faults that are still there, 9 all faults were repaired",
    )
    check.add_argument("--upper", required=True, metavar="DIR")
    check.add_argument("--work", required=True, metavar="DIR")
    _add_branches(check, lower_help="the lower branches that upper was made with; without them less can be told")
    check.add_argument("--repair", action="store_true", help="put right what can be put right")


def _add_commit(commands: _Commands) -> None:
    commit = _add(
        commands,
        "commit",
        "An upper branch becomes a layer.",
        "As the new directory NEW, to be named in --lower; or as the topmost layer of the image TAG (latest) of an\n"
        "OCI image layout, which is begun if it is not there. The union may be mounted: what was written before the\n"
        "command is in the layer, and all of it is as it was at one moment. --lower is needed where directories were\n"
        "moved, or copies are of metadata only.\n" + _INDEX,
    )
    commit.add_argument("upper", metavar="UPPER")
    commit.add_argument("new", nargs="?", metavar="NEW", help="the directory to be made")
    commit.add_argument("--oci-layout", metavar="DIR[:TAG]", help="the image to put the layer on")
    _add_branches(commit, lower_help="the lower branches that upper was made with")
    _add_work(commit)
    _add_writing(commit)


def _add_import(commands: _Commands) -> None:
    parser = _add(
        commands,
        "import",
        "An image becomes directories that can be mounted.",
        "IMAGE is an OCI image layout, as a directory or a tar file, or an archive of `docker save` or `podman save`.\n"
        "DEST gets one directory for each layer that it has not got, DEST/layers/ID. All digests are verified, and an\n"
        "archive that reaches out of its layer is refused; nothing is left of what fails. Prints the list for --lower.",
    )
    parser.set_defaults(command="image_import")
    parser.add_argument("image", metavar="IMAGE[:TAG]")
    parser.add_argument("dest", metavar="DEST")
    parser.add_argument("--name", metavar="NAME", help="of the image in DEST (its tag)")


def _add_export(commands: _Commands) -> None:
    parser = _add(
        commands,
        "export",
        "An imported image becomes an OCI image again.",
        "OUT is an OCI image layout, to which the image is added; or if it ends with .tar, a new archive for `docker\n"
        "load` and `podman load`.",
    )
    parser.set_defaults(command="image_export")
    parser.add_argument("image", metavar="DEST[:NAME]")
    parser.add_argument("out", metavar="OUT[:TAG]")
    _add_writing(parser)


def _add_flatten(commands: _Commands) -> None:
    flatten = _add(commands, "flatten", "All that a union shows becomes the new directory NEW.", _GOES_ON)
    flatten.add_argument("--upper", metavar="DIR")
    _add_branches(flatten, lower_help="the lower branches, as for mount")
    _add_work(flatten)
    flatten.add_argument("new", metavar="NEW")


def _add_squash(commands: _Commands) -> None:
    squash = _add(
        commands,
        "squash",
        "Several layers become the new layer NEW.",
        "It shows the same in their place. The layers that stay below have to be named, as it hides what they have.\n\n"
        + _GOES_ON,
    )
    squash.add_argument("--upper", metavar="DIR")
    _add_branches(squash, lower_help="the layers to squash, topmost first")
    _add_work(squash)
    squash.add_argument("--below", action="append", default=[], metavar="DIR[:DIR...]", help="those that stay below")
    squash.add_argument("new", metavar="NEW")


def _add_run(commands: _Commands) -> None:
    run = _add(
        commands,
        "run",
        "A program in an imported image.",
        "In namespaces of its own for mounts, processes and the host name, with the environment, user and working\n"
        "directory of the image; without PROGRAM, what the image starts. The network is the machine's, and root in\n"
        "the image may do what root may. What it writes is kept in memory and gone with it, or kept in --upper. Its\n"
        "exit status is ours, 128 and the number after a signal. SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1,\n"
        "SIGUSR2 are passed on; as the first process of its namespace it gets those that it handles. For root only.",
    )
    run.add_argument("--image", required=True, metavar="DEST[:NAME]", help="of `pyunion import`")
    run.add_argument("--upper", metavar="DIR", help="the writable branch, which stays")
    run.add_argument("--work", metavar="DIR", help="an empty directory on the file system of --upper")
    run.add_argument("--rm", action="store_true", help="keep nothing; so it is without --upper")
    run.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM", help="and its arguments")


def _add_writing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--compression", choices=("gzip", "zstd", "none"), default="gzip", help="of layers (gzip)")
    parser.add_argument(
        "--source-date-epoch", metavar="SECONDS", help="the latest time in the image; so equal input gives equal bytes"
    )


COMMANDS: dict[str, Callable[[_Commands], None]] = {
    "diff": _add_diff,
    "check": _add_check,
    "commit": _add_commit,
    "import": _add_import,
    "export": _add_export,
    "flatten": _add_flatten,
    "squash": _add_squash,
    "run": _add_run,
}
