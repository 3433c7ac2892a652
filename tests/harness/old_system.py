"""A program on an older system: calls that it has not fail there, as its kernel would let them.

A seccomp(2) filter gives them their errno, and the first request of /dev/fuse is made to offer what an older kernel
would. Run as a program it installs the filter and becomes the command that follows. Knows nothing of what is run.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import struct
import subprocess
import sys
from collections.abc import Sequence
from errno import EINVAL, ENOSYS, ENOTTY, EOPNOTSUPP
from typing import NamedTuple

# Calls that the kernel's headers may be too old for; the numbers are those of every architecture.
_NEWEST = {"fchmodat2": 452}
_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06  # of BPF: LD|W|ABS, ALU|AND|K, JMP|JEQ|K, RET|K
_NUMBER_AT, _ARGUMENTS_AT = 0, 16  # in struct seccomp_data
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_INSTRUCTION = struct.Struct("=HBBI")
_PR_SET_SECCOMP, _FILTER = 22, 2


class Missing(NamedTuple):
    """A call that fails: always, or where its argument (from 0) has all these bits, or is this number."""

    call: str
    error: int = ENOSYS
    argument: int = -1
    value: int = 0
    bits: bool = False


def _calls(*names: str) -> tuple[Missing, ...]:
    return tuple(Missing(name) for name in names)


def _ioctl(*numbers: int, error: int = ENOTTY) -> tuple[Missing, ...]:
    return tuple(Missing("ioctl", error, 1, number) for number in numbers)


# What a system may not have, under the name that people know it by.
MISSING: dict[str, tuple[Missing, ...]] = {
    "openat2": _calls("openat2"),
    "statx": _calls("statx"),
    "renameat2": _calls("renameat2"),
    "RENAME_NOREPLACE": (Missing("renameat2", EINVAL, 4, 1, bits=True),),
    "RENAME_EXCHANGE": (Missing("renameat2", EINVAL, 4, 2, bits=True),),
    "RENAME_WHITEOUT": (Missing("renameat2", EINVAL, 4, 4, bits=True),),
    "copy_file_range": _calls("copy_file_range"),
    "FICLONE": _ioctl(0x40049409),
    "O_TMPFILE": (Missing("openat", EOPNOTSUPP, 2, 0o20000000, bits=True),),
    "file handles": _calls("name_to_handle_at", "open_by_handle_at"),
    "fchmodat2": _calls("fchmodat2"),
    "faccessat2": _calls("faccessat2"),
    "close_range": _calls("close_range"),
    "pidfd": _calls("pidfd_open", "pidfd_send_signal", "pidfd_getfd"),
    "clone3": _calls("clone3"),
    "open_tree": _calls("open_tree"),
    "mount_setattr": _calls("mount_setattr"),
    "new mount calls": _calls("open_tree", "mount_setattr", "move_mount", "fsopen", "fsconfig", "fsmount", "fspick"),
    "preadv2": _calls("preadv2"),
    "RWF_NOWAIT": (Missing("preadv2", EOPNOTSUPP, 5, 8, bits=True),),
    "rseq": _calls("rseq"),
    "fallocate": (Missing("fallocate", EOPNOTSUPP),),
    "sync_file_range": _calls("sync_file_range"),
    "inode flags": _ioctl(0x80086601, 0x40086602, 0x801C581F, 0x401C5820),
    "FS_IOC_GETFSUUID": _ioctl(0x80111500),
    "passthrough": _ioctl(0x4010E501),
}
# What came after Linux 4.18, as far as the daemon might use it.
AFTER_4_18 = (
    "openat2", "fchmodat2", "faccessat2", "close_range", "pidfd", "clone3", "new mount calls", "rseq",
    "FS_IOC_GETFSUUID", "passthrough",
)  # fmt: skip

# The first request on /dev/fuse of Linux 4.18, INIT: a header, version 7.27, 128 KiB of readahead, all flags up to
# ABORT_ERROR (linux/fuse.h); nothing of what newer kernels add.
_INIT = struct.pack("=IIQQIIII", 104, 26, 2, 0, 0, 0, 0, 0) + struct.pack("=IIII48x", 7, 27, 1 << 17, 0x3FFFFB)


@functools.cache
def numbers() -> dict[str, int]:
    """The numbers of this machine's system calls."""
    command = ["cc", "-E", "-dM", "-include", "sys/syscall.h", "-x", "c", os.devnull]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+) (\d+)$", text, re.MULTILINE)}
    return _NEWEST | found


def launcher(missing: Sequence[str], *, old_fuse: bool = False) -> list[str]:
    """The words before a command that is to run on a system without these; with `old_fuse`, with the FUSE of 4.18."""
    words = [sys.executable, __file__, ",".join(rules(missing))]
    if not old_fuse:
        return words
    return [
        *("strace", "-qq", "-f", "--seccomp-bpf", "-o", os.devnull, "-P", "/dev/fuse"),
        *("-e", "trace=read", "-e", f"inject=read:poke_exit=@arg2={_INIT.hex()}:when=1", *words),
    ]


def rules(missing: Sequence[str]) -> list[str]:
    """What forbid() wants to be told."""
    return [
        f"{numbers()[one.call]}:{one.error}:{one.argument}:{one.value}:{int(one.bits)}"
        for name in missing
        for one in MISSING[name]
    ]


def _program(rules: Sequence[str]) -> bytes:
    program = []
    for rule in rules:
        number, error, argument, value, bits = map(int, rule.split(":"))
        body = []
        if argument >= 0:
            body.append((_LOAD, 0, 0, _ARGUMENTS_AT + 8 * argument))
            if bits:
                body.append((_AND, 0, 0, value))
            body.append((_EQUAL, 0, 1, value))
        body.append((_RETURN, 0, 0, _FAIL | error))
        program += [(_LOAD, 0, 0, _NUMBER_AT), (_EQUAL, 0, len(body), number), *body]
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(_INSTRUCTION.pack(*line) for line in program)


def forbid(rules: Sequence[str]) -> None:
    """Let these calls fail from now on, in this process and its children."""
    code = _program(rules)
    buffer = ctypes.create_string_buffer(code)
    head = struct.pack("HxxxxxxP", len(code) // _INSTRUCTION.size, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _FILTER, head, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "seccomp(2)")


if __name__ == "__main__":
    forbid(sys.argv[1].split(","))
    os.execv(sys.argv[2], sys.argv[2:])
