"""`pyunion info`: what this machine and each branch can do, as far as a union cares, and why not more.

Owns the facts and how they are shown, as text or JSON. Looking never writes; --probe does, in a directory of its own
inside the branch. Reads no pyunion mount and needs neither root nor pyfuse3.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
from argparse import Namespace
from collections.abc import Iterable

from pyunion import __version__, awake, mountinfo, preflight
from pyunion.branch import opening, syscalls
from pyunion.branch.probe import UpperFeatures, look, probe_upper
from pyunion.commands.quantities import size
from pyunion.errors import ExitCode, PyunionError, printable

# Facts by name, in the order in which they are shown. A number is one of bytes.
Facts = dict[str, "str | bool | int | list[str]"]

_OVERLAY = "overlay"
_NOT_PROBED = "not probed: a look only reads, --probe tries it"


def run(arguments: Namespace) -> int:
    host = _host()
    branches = _branches([os.fsencode(path) for path in arguments.branches], arguments.probe)
    if arguments.json:
        print(json.dumps({"host": host, "branches": branches}, indent=2))
        return ExitCode.OK
    _show("this machine", host)
    for number, branch in enumerate(branches, 1):
        _show(f"branch {number}", branch)
    return ExitCode.OK


# -- the machine --------------------------------------------------------------------------------------------------


def _host() -> Facts:
    return {
        "pyunion": __version__,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "pyfuse3": _version("pyfuse3"),
        "trio": _version("trio"),
        "libfuse": _libfuse(),
        "fusermount3": _fusermount(),
        "/dev/fuse": preflight.fuse_problem() or True,
        "overlayfs of the kernel": _has_overlayfs(),
        "read-only clones": _read_only_clones(),
        "extension": _extension(),
        "passthrough": _passthrough(),
        "processors kept awake": _awake(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _extension() -> bool | str:
    """What is beyond pyfuse3: default ACLs without the umask, nameless files, holes, fallocate, inode flags."""
    if importlib.util.find_spec("pyunion.fuse._wire") is not None:
        return True
    return "no; it was not built, and the mount does what pyfuse3 can (scripts/pyunion builds it)"


def _libfuse() -> str:
    """The version of the very library that pyfuse3 is linked with; there may be several."""
    spec = importlib.util.find_spec("pyfuse3")
    if spec is None or spec.origin is None:
        return "unknown without pyfuse3"
    try:
        version = ctypes.CDLL(spec.origin).fuse_pkgversion
    except (OSError, AttributeError) as error:
        return f"cannot be loaded: {error}"
    version.restype = ctypes.c_char_p
    return str(version().decode())


def _fusermount() -> str:
    try:
        done = subprocess.run(["fusermount3", "--version"], capture_output=True, text=True)
    except OSError as error:
        return f"no ({error.strerror}); without it only root can mount"
    return done.stdout.strip().rpartition(" ")[2]


def _has_overlayfs() -> bool | str:
    with open("/proc/filesystems", encoding="ascii") as file:
        return _OVERLAY in file.read().split() or "no, or its module is not loaded"


def _read_only_clones() -> bool | str:
    try:
        os.close(syscalls.open_readonly_clone(b"/"))
    except OSError as error:
        return f"no ({error.strerror}); they take Linux 5.12 and root"
    return True


def _passthrough() -> str:
    numbers = re.match(r"(\d+)\.(\d+)", platform.release())
    if numbers is None or (int(numbers[1]), int(numbers[2])) < (6, 9):
        return "no; it takes Linux 6.9"
    if _extension() is not True:
        return "no; it takes the extension"
    return _for_root()


def _awake() -> str:
    why = awake.problem()
    return _for_root() if why is None else f"no; {why}"


def _for_root() -> str:
    return "yes, for root" if os.geteuid() else "yes"


# -- branches -----------------------------------------------------------------------------------------------------


def _branches(paths: list[bytes], probe: bool) -> list[Facts]:
    devices: dict[int, list[str]] = {}
    found = []
    for path in paths:
        fd = opening.open_directory(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            devices.setdefault(os.fstat(fd).st_dev, []).append(printable(os.fsdecode(path)))
            found.append((os.fstat(fd).st_dev, _branch(path, fd, probe)))
        finally:
            os.close(fd)
    for device, facts in found:
        facts["same device as"] = [path for path in devices[device] if path != facts["path"]]
    return [facts for _, facts in found]


def _branch(path: bytes, fd: int, probe: bool) -> Facts:
    st = os.fstat(fd)
    space = os.fstatvfs(fd)
    seen = look(fd)
    facts: Facts = {
        "path": printable(os.fsdecode(path)),
        "file system": _file_system(fd),
        "device": f"{os.major(st.st_dev)}:{os.minor(st.st_dev)}",
        "same device as": [],
        "read-only": bool(space.f_flag & os.ST_RDONLY),
        "free": space.f_bavail * space.f_frsize,
        "size": space.f_blocks * space.f_frsize,
        "d_type": seen.d_type,
        "trusted xattrs": seen.trusted_xattr,
        "user xattrs": seen.user_xattr,
    }
    facts.update(_probed(fd) if probe else {"as upper branch": _NOT_PROBED})
    return facts


def _file_system(fd: int) -> str:
    number = mountinfo.mount_id(fd)
    for mount in mountinfo.read():
        if mount.mount_id == number:
            return f"{mount.fstype} ({printable(os.fsdecode(mount.source))})"
    return "unknown"


def _probed(fd: int) -> Facts:
    name = b".pyunion-probe-%d" % os.getpid()
    try:
        os.mkdir(name, 0o700, dir_fd=fd)
    except OSError as error:
        return {"as upper branch": f"no: nothing can be created in it ({error.strerror})"}
    try:
        inside = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        try:
            return _upper(probe_upper(inside, want_userxattr=False, full=True))
        finally:
            os.close(inside)
    except PyunionError as error:
        return {"as upper branch": f"no: {printable(str(error))}"}
    finally:
        os.rmdir(name, dir_fd=fd)


def _upper(features: UpperFeatures) -> Facts:
    prefix = features.xattr_prefix
    if features.whiteout_device:
        whiteouts = "character device 0:0"
    elif prefix is not None:
        whiteouts = f"empty file with the xattr {os.fsdecode(prefix)}whiteout"
    else:
        whiteouts = "none"
    return {
        "as upper branch": True,
        "marks": False if prefix is None else f"{os.fsdecode(prefix)}*",
        "whiteouts": whiteouts,
        "exchange of names": features.rename_exchange,
        "rename with whiteout": features.rename_whiteout,
        "reflink": features.reflink,
        "nameless files": features.o_tmpfile,
        "why not": list(features.reasons),
    }


# -- as text ------------------------------------------------------------------------------------------------------


def _show(title: str, facts: Facts) -> None:
    print(title)
    width = max(map(len, facts))
    for name, value in facts.items():
        for line, text in enumerate(_lines(value)):
            print(f"  {name if line == 0 else '':{width}}  {text}")


def _lines(value: str | bool | int | list[str]) -> Iterable[str]:
    if isinstance(value, bool):
        return ["yes" if value else "no"]
    if isinstance(value, int):
        return [size(value)]
    return [value] if isinstance(value, str) else value
