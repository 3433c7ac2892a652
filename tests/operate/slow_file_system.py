"""A program: a file system with the file `big`, whose second half is read once stdin has ended.

Arguments: the mount point, and the size of a half. Says `mounted` when it answers.
"""

from __future__ import annotations

import os
import stat
import sys
from errno import ENOENT

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, ReaddirToken, RequestContext

NAME, BIG = b"big", 2


class Slow(pyfuse3.Operations):
    def __init__(self, half: int) -> None:
        super().__init__()
        self.half = half
        self.may_go_on = trio.Event()

    def attributes(self, ino: int) -> EntryAttributes:
        attr = EntryAttributes()
        attr.st_ino = pyfuse3.InodeT(ino)
        attr.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o644 if ino == BIG else stat.S_IFDIR | 0o755)
        attr.st_nlink = 1
        attr.st_size = 2 * self.half if ino == BIG else 0
        return attr

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self.attributes(inode)

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if name != NAME:
            raise pyfuse3.FUSEError(ENOENT)
        return self.attributes(BIG)

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=pyfuse3.FileHandleT(inode), direct_io=True)  # nothing is read ahead

    async def read(self, fh: int, off: int, size: int) -> bytes:
        if off >= self.half:
            await self.may_go_on.wait()
        return b"x" * max(0, min(size, 2 * self.half - off))

    async def opendir(self, inode: int, ctx: RequestContext) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(inode)

    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        if start_id == 0:
            pyfuse3.readdir_reply(token, pyfuse3.FileNameT(NAME), self.attributes(BIG), 1)

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 512
        data.f_blocks = 2 * self.half // 512
        data.f_namemax = 255
        return data


async def serve(at: str, half: int) -> None:
    operations = Slow(half)
    pyfuse3.init(operations, at, {"fsname=slow"})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main)
        await trio.to_thread.run_sync(os.stat, at)
        print("mounted", flush=True)
        await trio.to_thread.run_sync(sys.stdin.buffer.read)
        operations.may_go_on.set()
    pyfuse3.close(unmount=False)


if __name__ == "__main__":
    trio.run(serve, sys.argv[1], int(sys.argv[2]))
