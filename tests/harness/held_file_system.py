"""A program: shows a directory read-only, and keeps every request about it waiting as long as it is told to.

Arguments: the mount point and the directory. Says `mounted` when it answers. Each line on stdin is `hold`, `go` or
`next`, which lets one request go on, and is answered by the same; of each request that has to wait `held REQUEST` is
said.
"""

from __future__ import annotations

import errno
import functools
import inspect
import os
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, ReaddirToken, RequestContext

_REQUESTS = (
    *("lookup", "getattr", "readlink", "open", "read", "flush", "opendir", "readdir", "getxattr", "listxattr"),
    "statfs",
)


class Held(pyfuse3.Operations):
    def __init__(self, source: str) -> None:
        super().__init__()
        self._paths = {pyfuse3.ROOT_INODE: os.fsencode(source)}
        self._holds = False
        self._waiting: deque[trio.Event] = deque()
        for name in _REQUESTS:
            setattr(self, name, self._holding(getattr(self, name)))

    def hold(self) -> None:
        self._holds = True

    def go(self) -> None:
        self._holds = False
        while self._waiting:
            self.next()

    def next(self) -> None:
        self._waiting.popleft().set()

    def _holding(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(handler)
        async def wrapper(*arguments: Any) -> Any:
            if self._holds:
                turn = trio.Event()
                self._waiting.append(turn)
                print("held", handler.__name__, flush=True)
                await turn.wait()
            try:
                result = handler(*arguments)
                return await result if inspect.isawaitable(result) else result
            except OSError as error:
                raise pyfuse3.FUSEError(error.errno or errno.EIO) from None

        return wrapper

    def _attributes(self, path: bytes) -> EntryAttributes:
        st = os.lstat(path)
        attr: Any = EntryAttributes()
        for name in (
            *("st_ino", "st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size", "st_blksize", "st_blocks"),
            *("st_atime_ns", "st_mtime_ns", "st_ctime_ns"),
        ):
            setattr(attr, name, getattr(st, name))
        attr.entry_timeout = attr.attr_timeout = 0  # so that the kernel asks each time
        self._paths[attr.st_ino] = path
        return attr  # type: ignore[no-any-return]

    def lookup(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:  # type: ignore[override]
        return self._attributes(self._paths[parent] + b"/" + name)

    def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:  # type: ignore[override]
        attr = self._attributes(self._paths[inode])
        attr.st_ino = inode
        return attr

    def readlink(self, inode: int, ctx: RequestContext) -> bytes:  # type: ignore[override]
        return os.readlink(self._paths[inode])

    def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:  # type: ignore[override]
        return FileInfo(fh=pyfuse3.FileHandleT(os.open(self._paths[inode], os.O_RDONLY)))

    def read(self, fh: int, off: int, size: int) -> bytes:  # type: ignore[override]
        return os.pread(fh, size, off)

    def flush(self, fh: int) -> None:  # type: ignore[override]
        pass

    async def release(self, fh: int) -> None:
        os.close(fh)

    def opendir(self, inode: int, ctx: RequestContext) -> int:  # type: ignore[override]
        return inode

    def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:  # type: ignore[override]
        path = self._paths[fh]
        for number, name in enumerate(sorted(os.listdir(path))[start_id:], start_id + 1):
            attr = self._attributes(path + b"/" + name)
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), attr, number):
                return

    def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:  # type: ignore[override]
        return os.getxattr(self._paths[inode], name, follow_symlinks=False)

    def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:  # type: ignore[override]
        return [os.fsencode(name) for name in os.listxattr(self._paths[inode], follow_symlinks=False)]

    def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:  # type: ignore[override]
        st = os.statvfs(self._paths[pyfuse3.ROOT_INODE])
        data = pyfuse3.StatvfsData()
        for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(data, name, getattr(st, name))
        data.f_namemax = st.f_namemax
        return data


async def serve(at: str, source: str) -> None:
    operations = Held(source)
    pyfuse3.init(operations, at, {"fsname=held", "allow_other", "default_permissions", "ro"})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_obey, operations)
        nursery.start_soon(_say_when_mounted, at)
        await pyfuse3.main()
        nursery.cancel_scope.cancel()
    pyfuse3.close(unmount=False)


async def _say_when_mounted(at: str) -> None:
    await trio.to_thread.run_sync(os.stat, at)
    print("mounted", flush=True)


async def _obey(operations: Held) -> None:
    while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
        {"hold\n": operations.hold, "go\n": operations.go, "next\n": operations.next}[line]()
        print(line, end="", flush=True)


if __name__ == "__main__":
    trio.run(serve, sys.argv[1], sys.argv[2])
