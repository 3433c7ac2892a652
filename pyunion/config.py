"""What the user asked for: the lists and options of the command line, parsed into one MountConfig.

Owns the syntax of lower lists and of -o, the table of known options, and which of them go together. Pure: it opens
nothing, looks at no path and knows no daemon; whether the branches are usable is pyunion.preflight's question.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyunion.errors import ExitCode, PyunionError
from pyunion.union.ids import AS_STORED, NOT_MAPPED, Mapping, Owners, Range

LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True)
class MountConfig:
    """One mount, as the daemon builds it. Paths are as given until the preflight has resolved them."""

    lowers: tuple[bytes, ...]  # topmost first
    upper: bytes | None
    work: bytes | None
    mountpoint: bytes
    read_only: bool = False
    redirect_dir: bool = True  # write redirects: a directory with lower parts can be renamed
    follow_redirects: bool = True
    metacopy: bool = False
    aufs: bool = False  # honour .wh. marks in lower branches
    volatile: bool = False  # never fsync a branch, and leave a mark that says so
    fsync: bool = True  # False: as fuse-overlayfs has it, volatile without the mark
    userxattr: bool = False
    index: bool | None = None  # None: on where it works
    writeback: bool = True
    passthrough: bool = True  # the kernel reads and writes upper files by itself, where it can
    passthrough_lower: bool = False  # and reads lower ones, by descriptors that then stay with them
    awake: bool = True  # the processors of a virtual machine do not sleep while requests come in quick succession
    mount_flags: tuple[str, ...] = ()  # flags of the FUSE mount itself; `ro` follows from read_only
    fsname: str = "pyunion"
    foreground: bool = False
    owners: Owners = NOT_MAPPED
    log_level: str = "info"
    log_file: bytes | None = None
    metrics: str | None = None  # HOST:PORT on which Prometheus finds them
    data_only: int = 0  # so many of the last lower branches hold nothing but the data of metadata-only copies
    notes: tuple[str, ...] = ()  # sentences about options that were accepted and do nothing

    @property
    def syncs(self) -> bool:
        """Whether anything waits for the disk."""
        return self.fsync and not self.volatile


@dataclass(slots=True)
class Options:
    """What the -o lists say, in their order: of options that contradict each other the last one counts."""

    lowers: list[bytes] = field(default_factory=list)
    data_only: int = 0
    upper: bytes | None = None
    work: bytes | None = None
    fsname: str = "pyunion"
    uids: Mapping = AS_STORED
    gids: Mapping = AS_STORED
    switches: dict[str, bool] = field(default_factory=dict)  # fields of MountConfig
    flags: dict[str, str] = field(default_factory=dict)  # subject -> mount flag
    notes: list[str] = field(default_factory=list)
    remount: bool = False  # change the mount that is there
    sloppy: bool = False  # what is unknown is passed over and noted


# An option, as it is written, and the fields of MountConfig that it sets.
_SWITCHES: dict[bytes, dict[str, bool]] = {
    b"ro": {"read_only": True},
    b"rw": {"read_only": False},
    b"redirect_dir=on": {"redirect_dir": True, "follow_redirects": True},
    b"redirect_dir=follow": {"redirect_dir": False, "follow_redirects": True},
    b"redirect_dir=nofollow": {"redirect_dir": False, "follow_redirects": False},
    b"redirect_dir=off": {"redirect_dir": False, "follow_redirects": True},  # as kernels are built by default
    b"metacopy=on": {"metacopy": True},
    b"metacopy=off": {"metacopy": False},
    b"volatile": {"volatile": True},
    b"userxattr": {"userxattr": True},
    b"aufs": {"aufs": True},
    b"noaufs": {"aufs": False},
    b"index=on": {"index": True},
    b"index=off": {"index": False},
    b"passthrough=auto": {"passthrough": True, "passthrough_lower": False},
    b"passthrough=all": {"passthrough": True, "passthrough_lower": True},
    b"passthrough=off": {"passthrough": False, "passthrough_lower": False},
    b"awake=auto": {"awake": True},
    b"awake=off": {"awake": False},
    b"writeback": {"writeback": True},
    b"nowriteback": {"writeback": False},
    # as fuse-overlayfs says them
    b"writeback=1": {"writeback": True},
    b"writeback=0": {"writeback": False},
    b"fsync=1": {"fsync": True},
    b"fsync=0": {"fsync": False},
}

# A mount flag, what it is about, and how libfuse calls it; the empty name stands for the kernel's default.
_FLAGS: dict[bytes, tuple[str, str]] = {
    b"suid": ("suid", "suid"),
    b"nosuid": ("suid", "nosuid"),
    b"dev": ("dev", "dev"),
    b"nodev": ("dev", "nodev"),
    b"exec": ("exec", ""),
    b"noexec": ("exec", "noexec"),
    b"atime": ("atime", ""),
    b"relatime": ("atime", ""),
    b"strictatime": ("atime", ""),
    b"noatime": ("atime", "noatime"),
    b"sync": ("sync", "sync"),
    b"async": ("sync", ""),
    b"dirsync": ("dirsync", "dirsync"),
}

# Accepted, as tools and fstab lines say them, and true of every pyunion mount or without a meaning for it.
_NOTHING_TO_DO = frozenset(
    b"norelatime nostrictatime lazytime nolazytime diratime nodiratime silent loud nomand noiversion private rprivate "
    b"allow_other default_permissions xino=on xino=off xino=auto nfs_export=off verity=off uuid=on "
    b"uuid=off uuid=auto uuid=null _netdev nofail auto noauto user nouser users owner group defaults "
    b"xattr_permissions=0 noxattrs=0".split()
)
# The second line is how fuse-overlayfs is tuned; the third what the kernel reports of each FUSE mount, and mount(8)
# hands back for a remount.
_NOTHING_TO_DO_WITH_VALUE = re.compile(
    rb"(x-|X-|comment=|"
    rb"(clone_fd|fast_ino|max_idle_threads|max_threads|static_nlink|threaded|timeout)(=|$)|"
    rb"(user_id|group_id|max_read)=)"
)

# What fuse-overlayfs has and we have not; passing over these would show other files than were asked for.
_OF_FUSE_OVERLAYFS = {
    b"xattr_permissions": "owners and modes are those of the files; in storage.conf drop force_mask",
    b"noxattrs": "extended attributes are always shown",
    b"noacl": "access control lists always count",
    b"plugins": "layers are directories that are there when it is mounted",
}

# Its value has commas of its own, and is then written in quotes.
_SELINUX = re.compile(rb'(?:^|(?<=,))((?:fs|def|root)?context=(?:"[^"]*"|[^",]*))(?:,|$)')


def split_lower(text: bytes) -> tuple[list[bytes], int]:
    r"""The branches of a colon separated list, topmost first; `\:` and `\\` stand for the characters themselves.

    Branches after `::` are data-only, and the last ones; the second result is their number. Any other empty element
    is refused, never taken for the current directory.
    """
    parts = _split(text, b":")
    shown = os.fsdecode(text)
    if parts == [b""]:
        raise _usage("the list of lower branches is empty")
    merged = parts.index(b"") if b"" in parts else len(parts)
    data = parts[merged + 1 :: 2]
    if merged == 0 or len(parts) - merged != 2 * len(data) or b"" in data:
        raise _usage(f"the list of lower branches '{shown}' has an empty element: name a directory or drop the colon")
    if any(parts[merged::2]):
        raise _usage(f"in '{shown}' a branch after the first '::' has one colon before it; data-only ones have two")
    return [_unescape(part) for part in (*parts[:merged], *data)], len(data)


def split_lowers(lists: Sequence[bytes], data_only: int = 0) -> tuple[list[bytes], int]:
    """The branches of all --lower together, with the number of data-only ones, of which there may be some already."""
    layers: list[bytes] = []
    for text in lists:
        branches, data = split_lower(text)
        if data_only and len(branches) > data:
            raise _usage("data-only branches (after '::') come last; name the other lower branches before them")
        layers += branches
        data_only += data
    return layers, data_only


def parse_options(text: bytes, into: Options | None = None) -> Options:
    r"""Read one -o list: comma separated, where `\,` stands for a comma in a value. Raises PyunionError."""
    options = Options() if into is None else into
    for context in _SELINUX.findall(text):
        options.notes.append(f"SELinux option passed over: {os.fsdecode(context)}")
    for option in _split(_SELINUX.sub(b"", text), b","):
        if option:
            _parse_option(option, options)
    return options


def make_config(
    options: Options,
    *,
    lowers: Sequence[bytes],
    upper: bytes | None,
    work: bytes | None,
    mountpoint: bytes,
    privileged: bool,
    foreground: bool = False,
    log_level: str = "info",
    log_file: bytes | None = None,
    metrics: str | None = None,
) -> MountConfig:
    """Put the switches of the command line and the -o lists together, and refuse what does not go together.

    `lowers` are lists as --lower takes them. `privileged`: whether the mount may have set-uid programs and devices.
    """
    if re.search(r"[\\,]", options.fsname):  # libfuse would take them for an escape and the next option
        raise _usage(f"the source '{options.fsname}' (fsname=) must have neither commas nor backslashes")
    layers, data_only = split_lowers(lowers, options.data_only)
    if layers and options.lowers:
        raise _usage("the lower branches are given twice, by --lower and by -o lowerdir=; keep one of them")
    flags = {"suid": "suid", "dev": "dev", **options.flags} if privileged else options.flags
    config = MountConfig(
        lowers=tuple(layers or options.lowers),
        upper=_one_of("upper", upper, options.upper),
        work=_one_of("work", work, options.work),
        mountpoint=mountpoint,
        mount_flags=tuple(flag for flag in flags.values() if flag),
        fsname=options.fsname,
        owners=Owners(options.uids, options.gids),
        data_only=data_only,
        foreground=foreground,
        log_level=log_level,
        log_file=log_file,
        metrics=metrics,
        notes=tuple(options.notes),
        **options.switches,
    )
    _check_combination(config)
    return config


def is_address(text: str) -> bool:
    """Whether this is HOST:PORT, where an address of IPv6 has brackets."""
    return re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+):\d{1,5}", text) is not None


def _check_combination(config: MountConfig) -> None:
    if not config.lowers:
        raise _usage("no lower branch is given; name one or more with --lower DIR[:DIR...]")
    if config.upper is not None and config.work is None:
        raise _usage(
            f"the upper branch {os.fsdecode(config.upper)} needs a work directory (--work, workdir=, the key work): an "
            "empty one on the same file system, outside of it"
        )
    if config.work is not None and config.upper is None:
        raise _usage(
            f"the work directory {os.fsdecode(config.work)} is of no use without an upper branch (--upper, upperdir=, "
            "the key upper); name both, or neither for a read-only union"
        )
    if config.metrics is not None and not is_address(config.metrics):
        raise _usage(f"--metrics takes HOST:PORT, as 127.0.0.1:9300 or [::1]:9300, and '{config.metrics}' is none")
    if config.metacopy and not config.redirect_dir:
        raise _usage("metacopy=on needs redirect_dir=on, as a renamed file finds its data by a redirect")


def _parse_option(option: bytes, options: Options) -> None:
    if option == b"remount":
        options.remount = True
    elif option in _SWITCHES:
        options.switches.update(_SWITCHES[option])
    elif option in _FLAGS:
        subject, flag = _FLAGS[option]
        options.flags[subject] = flag
    elif option not in _NOTHING_TO_DO and not _NOTHING_TO_DO_WITH_VALUE.match(option):
        _parse_value(option, options)


def _parse_value(option: bytes, options: Options) -> None:
    key, equals, value = option.partition(b"=")
    if key in (b"lowerdir", b"lowerdir+", b"upperdir", b"workdir", b"fsname") and not value:
        raise _usage(f"the option {os.fsdecode(key)}= needs a value")
    if key == b"lowerdir":
        options.lowers, options.data_only = split_lower(value)
    elif key == b"lowerdir+" and equals:
        if options.data_only:
            raise _usage("datadir+= comes after all lowerdir+=")
        options.lowers.append(_unescape(value))
    elif key == b"datadir+" and value and options.lowers:
        options.lowers.append(_unescape(value))
        options.data_only += 1
    elif key == b"upperdir":
        options.upper = _unescape(value)
    elif key == b"workdir":
        options.work = _unescape(value)
    elif key == b"fsname":
        options.fsname = os.fsdecode(value)
    elif key in _OF_FUSE_OVERLAYFS:
        raise _usage(f"the option {os.fsdecode(key)} of fuse-overlayfs cannot be had: {_OF_FUSE_OVERLAYFS[key]}")
    elif _parse_ids(key, value, options):
        pass
    elif options.sloppy:
        options.notes.append(f"unknown option passed over: {os.fsdecode(option)}")
    else:
        raise _usage(f"unknown option '{os.fsdecode(option)}' in -o; `pyunion mount --help` lists those that exist")


def _parse_ids(key: bytes, value: bytes, options: Options) -> bool:
    """Mappings of owners; whether the option is one."""
    if key == b"uidmapping":
        options.uids = options.uids._replace(ranges=_ranges(key, value))
    elif key == b"gidmapping":
        options.gids = options.gids._replace(ranges=_ranges(key, value))
    elif key == b"squash_to_root" and not value:
        options.uids, options.gids = options.uids._replace(squash_to=0), options.gids._replace(squash_to=0)
    elif key == b"squash_to_uid":
        options.uids = options.uids._replace(squash_to=_id(key, value))
    elif key == b"squash_to_gid":
        options.gids = options.gids._replace(squash_to=_id(key, value))
    else:
        return False
    return True


def _ranges(key: bytes, value: bytes) -> tuple[Range, ...]:
    """STORED:SHOWN:COUNT, and more of them after further colons; podman begins with a colon."""
    numbers = [_id(key, number) for number in value.removeprefix(b":").split(b":")]
    if len(numbers) % 3:
        raise _usage(f"{os.fsdecode(key)}= takes STORED:SHOWN:COUNT, and as many more of these as there are ranges")
    return tuple(
        Range(shown, stored, count)
        for stored, shown, count in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    )


def _id(key: bytes, text: bytes) -> int:
    if not text.isdigit() or int(text) >= 1 << 32:
        raise _usage(f"{os.fsdecode(key)}= takes numbers of users or groups, and '{os.fsdecode(text)}' is none")
    return int(text)


def _one_of(what: str, by_switch: bytes | None, by_option: bytes | None) -> bytes | None:
    if by_switch is not None and by_option is not None:
        raise _usage(f"the {what} directory is given twice, by --{what} and by -o {what}dir=; keep one of them")
    path = by_option if by_switch is None else by_switch
    if path == b"":
        raise _usage(f"--{what} is empty; name a directory")
    return path


def _split(text: bytes, separator: bytes) -> list[bytes]:
    """The elements of a list, backslashes and all: a separator after a backslash separates nothing."""
    return re.findall(rb"(?:^|%b)((?:\\.|[^\\%b])*\\?)" % (separator, separator), text, re.DOTALL)


def _unescape(text: bytes) -> bytes:
    """A backslash makes the next byte an ordinary one, as in the kernel's overlayfs."""
    return re.sub(rb"\\(.)", rb"\1", text, flags=re.DOTALL)


def _usage(sentence: str) -> PyunionError:
    return PyunionError(sentence, ExitCode.USAGE)
