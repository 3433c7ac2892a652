"""Run as some caller, with any Python: makes all operations on the objects below a directory and prints, as JSON, what
each gave.

Each operation has objects of its own, one for each mode; test_permissions.py makes them by the tables here.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable

CAPABILITIES = bytes.fromhex("0000000200200000" + "00" * 12)
ACL = bytes.fromhex("0200000001000600ffffffff04000400ffffffff20000400ffffffff")  # u::rw-,g::r--,o::r--


def opened(path: str, flags: int) -> None:
    os.close(os.open(path, flags, 0o640))


# Objects of these modes have an ACL; what the mode says of the group is its mask.
FILES_WITH_ACL = (0o640, 0o670)
DIRECTORIES_WITH_ACL = (0o750, 0o1770)
FILE_MODES = (0o644, 0o600, 0o660, 0o444, 0o000, 0o4755, 0o2755, *FILES_WITH_ACL)
ON_FILES: dict[str, Callable[[str], object]] = {
    "read": lambda path: opened(path, os.O_RDONLY),
    "write": lambda path: opened(path, os.O_WRONLY),
    "append": lambda path: opened(path, os.O_RDWR | os.O_APPEND),
    "open and truncate": lambda path: opened(path, os.O_WRONLY | os.O_TRUNC),
    "read without access time": lambda path: opened(path, os.O_RDONLY | os.O_NOATIME),
    "write data": lambda path: _write(path),
    "truncate": lambda path: os.truncate(path, 2),
    "chmod": lambda path: os.chmod(path, 0o640),
    "chmod setgid": lambda path: os.chmod(path, 0o2755),
    "give away": lambda path: os.chown(path, 1002, -1),
    "chgrp to the owner's": lambda path: os.chown(path, -1, 1000),
    "chgrp to another": lambda path: os.chown(path, -1, 1001),
    "touch": lambda path: os.utime(path),
    "set times": lambda path: os.utime(path, (5, 5)),
    "get xattr": lambda path: os.getxattr(path, "user.there"),
    "list xattrs": lambda path: os.listxattr(path),
    "set xattr": lambda path: os.setxattr(path, "user.new", b"1"),
    "remove xattr": lambda path: os.removexattr(path, "user.there"),
    "set trusted xattr": lambda path: os.setxattr(path, "trusted.new", b"1"),
    "set capabilities": lambda path: os.setxattr(path, "security.capability", CAPABILITIES),
    "set ACL": lambda path: os.setxattr(path, "system.posix_acl_access", ACL),
    "may read": lambda path: os.access(path, os.R_OK),
    "may write": lambda path: os.access(path, os.W_OK),
    "may execute": lambda path: os.access(path, os.X_OK),
    "link": lambda path: os.link(path, path + ".new"),
    "rename": lambda path: os.rename(path, path + ".new"),
    "unlink": lambda path: os.unlink(path),
}
DIRECTORY_MODES = (0o755, 0o770, 0o1777, 0o555, 0o711, 0o2775, *DIRECTORIES_WITH_ACL)
ON_DIRECTORIES: dict[str, Callable[[str], object]] = {
    "list": lambda path: sorted(os.listdir(path)),
    "look": lambda path: os.stat(path + "/his").st_size,
    "read in it": lambda path: opened(path + "/his", os.O_RDONLY),
    "create": lambda path: opened(path + "/new", os.O_CREAT | os.O_WRONLY),
    "mkdir": lambda path: os.mkdir(path + "/new"),
    "mkfifo": lambda path: os.mkfifo(path + "/new"),
    "symlink": lambda path: os.symlink("his", path + "/new"),
    "nameless": lambda path: opened(path, os.O_TMPFILE | os.O_RDWR),
    "unlink his": lambda path: os.unlink(path + "/his"),
    "unlink another's": lambda path: os.unlink(path + "/another"),
    "rmdir": lambda path: os.rmdir(path + "/empty"),
    "rename his": lambda path: os.rename(path + "/his", path + "/new"),
    "rename another's": lambda path: os.rename(path + "/another", path + "/new"),
    "rename over another's": lambda path: os.rename(path + "/his", path + "/another"),
    "link his": lambda path: os.link(path + "/his", path + "/new"),
    "chmod it": lambda path: os.chmod(path, 0o750),
    "give it away": lambda path: os.chown(path, 1002, -1),
    "touch it": lambda path: os.utime(path),
    "set its xattr": lambda path: os.setxattr(path, "user.new", b"1"),
    "move it": lambda path: os.rename(path, path + ".new"),
    "remove what is not empty": lambda path: os.rmdir(path),
}


def _write(path: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, b"data")
        os.fsync(fd)
    finally:
        os.close(fd)


def place(operation: str, mode: int) -> str:
    """Where the object of an operation is."""
    return f"{operation.replace(' ', '-')}-{mode:o}"


def verdicts(root: str) -> dict[str, object]:
    found: dict[str, object] = {}
    for modes, operations in ((FILE_MODES, ON_FILES), (DIRECTORY_MODES, ON_DIRECTORIES)):
        for operation, call in operations.items():
            for mode in modes:
                name = place(operation, mode)
                try:
                    found[name] = call(os.path.join(root, name))
                except OSError as error:
                    found[name] = errno.errorcode[error.errno or 0]
    return found


if __name__ == "__main__":
    os.umask(0o027)
    json.dump(verdicts(sys.argv[1]), sys.stdout, default=repr)
