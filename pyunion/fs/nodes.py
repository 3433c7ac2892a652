"""Nodes: the objects of the union that the kernel knows about, and the table that finds them.

A node is found by its number, by its place (parent and name), and, where an object has several names, by the
device and inode number of the object. Owns the count of the kernel's references, and that no two nodes have one number.
Knows no look-up and no changes; everything here is synchronous.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from errno import ENOENT
from typing import Any, NamedTuple, TypeVar

from pyunion.branch.dirs import Branch, Dir
from pyunion.branch.remote import Remote
from pyunion.fs.memory import Memory
from pyunion.union.numbers import Numbers

_T = TypeVar("_T")

ROOT = 1
CAPABILITIES = b"security.capability"  # the xattr with a file's capabilities (capabilities(7))

Place = tuple[Dir, bytes]  # of an object of a branch: a directory, and a name in it


class Handle:
    """What stands for a file that is open without a descriptor, however often it is; its users share one in the end.
    See unopened.py."""

    __slots__ = ("errno", "fd", "file", "number", "users")

    def __init__(self, file: File, number: int) -> None:
        self.file = file
        self.number = number
        self.users = 0
        self.fd = -1
        self.errno = 0  # why it cannot be opened


class Node:
    """What file and directory nodes have in common. `parent` and `name` are its place in the union."""

    __slots__ = ("copied", "dead", "hidden_links", "id", "ino", "lookups", "name", "parent", "protection")

    is_dir = False

    def __init__(self, parent: Directory | None, name: bytes) -> None:
        self.ino = 0  # what users see
        self.id = 0  # what the kernel calls it: the same, but for a file that was renewed
        self.lookups = 0  # references that the kernel has and has not given back by forget
        self.parent = parent
        self.name = name
        self.dead = False  # has no name any more
        self.hidden_links = 0  # links of the object that are no names in the union: removed names, the index entry
        self.copied = False  # its object in upper says which lower one it is a copy of
        self.protection = 0  # what a mark on its object in upper says: APPEND and IMMUTABLE

    @property
    def in_upper(self) -> bool:
        raise NotImplementedError

    def uses(self, branch: Branch) -> bool:
        """Whether it is reached by a branch."""
        raise NotImplementedError

    def address(self) -> tuple[int, bytes]:
        """The topmost object as pyunion.branch.objects wants it. For one in a lower branch there is ask()."""
        raise NotImplementedError

    def ask(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """A function of pyunion.branch.objects, which changes nothing, on the topmost object."""
        raise NotImplementedError

    def path(self) -> bytes:
        """Its place in the union, with a leading slash; empty for the root. The last one, if it has no name now."""
        names = []
        node: Node = self
        while node.parent is not None:
            names.append(node.name)
            node = node.parent
        return b"".join(b"/" + name for name in reversed(names))


class File(Node):
    """Anything but a directory. Its object is `real` in `dir`, or `pin`, a descriptor, once that name is gone.

    An indexed file, the copy of a hard-linked lower file, is always reached by its entry in the index: its names in the
    union need not be names in upper.
    """

    __slots__ = (
        "aliases", "data", "dir", "fds", "former", "handle", "incapable", "index", "key", "lower_links", "pin", "real",
        "settled", "swapped", "told_mtime_ns", "written",
    )  # fmt: skip

    def __init__(self, parent: Directory, name: bytes, directory: Dir, real: bytes) -> None:
        super().__init__(parent, name)
        self.dir = directory
        self.real = real
        self.pin = -1
        self.data: Place | None = None  # where the data are, for a metadata-only copy
        self.fds: list[int] | None = None  # open descriptors, each of which is a file handle of the kernel's
        self.handle: Handle | None = None  # what stands for it while it is open without a descriptor
        self.swapped: set[int] | None = None  # of these, while a copy comes from a branch that may not answer
        self.former: dict[int, int] | None = None  # ids from before it was renewed, and the kernel's references to them
        self.key: tuple[int, int] | None = None  # device and inode number, where there are other names
        self.aliases: list[tuple[Directory, bytes]] | None = None  # further names that were looked up
        self.index: bytes | None = None  # its name in the index
        self.lower_links = 0  # of the lower file that an indexed file is a copy of
        self.settled = False  # it is on disk that the file is in upper, as far as we know
        self.told_mtime_ns = 0  # of a file that is open for writing: when it was changed, as far as the kernel knows
        self.written = False  # since then
        self.incapable = False  # known to have no file capabilities: it was made or copied in this mount without any

    @property
    def in_upper(self) -> bool:
        return self.dir.branch.is_upper

    def data_below(self) -> Place | None:
        """Where in a lower branch its data are; None if they are in upper, and do not move any more."""
        return self.data if self.in_upper else self.data or (self.dir, self.real)

    @property
    def is_open(self) -> bool:
        """Whether somebody has it open."""
        return bool(self.fds) or self.handle is not None

    def uses(self, branch: Branch) -> bool:
        if self.data is not None and self.data[0].branch is branch:
            return True
        return self.pin < 0 and self.dir.branch is branch

    def hold(self, pin: int) -> None:
        """The object in a lower branch is reached by an O_PATH descriptor from now on, until let_go(): its name may be
        another one's. Where the branch may not answer, that is asked as any other of its directories."""
        if self.dir.branch.remote is None:
            self.pin = pin
        else:
            self.dir, self.real = self.dir.branch.root.child(b""), b""
            self.dir.open_fd, self.dir.pinned = pin, True

    def is_held(self) -> bool:
        """Whether it is reached by a descriptor."""
        return self.pin >= 0 or not self.real

    def let_go(self) -> None:
        """Close the descriptor that a file without a name is reached by, if there is one."""
        if self.pin >= 0:
            os.close(self.pin)
            self.pin = -1
        elif self.is_held() and not self.in_upper and self.dir.parent is not None:
            self.dir.close()

    def at(self, directory: Dir, real: bytes) -> None:
        """The object has come to another place of upper."""
        if self.index is None:
            self.dir, self.real = directory, real

    def address(self) -> tuple[int, bytes]:
        return (self.pin, b"") if self.pin >= 0 else (self.dir.fd(), self.real)

    def stat(self) -> os.stat_result:
        if self.pin >= 0:
            return os.fstat(self.pin)
        return self.dir.lstat(self.real)

    def ask(self, function: Callable[..., _T], *arguments: Any) -> _T:
        if self.pin >= 0:
            return function(self.pin, b"", *arguments)
        return self.dir.ask(function, self.real, *arguments)

    @property
    def source(self) -> tuple[Dir, bytes]:
        """Where its data are, as long as it has a name in a branch."""
        return self.data or (self.dir, self.real)

    @property
    def remote(self) -> Remote | None:
        """The branch that its data come from, if that may not answer."""
        return self.source[0].branch.remote


class Listing(NamedTuple):
    """What a directory of the union has, as it was listed last. A name keeps its position; see listing.py."""

    names: list[bytes]
    positions: list[int]  # of the names, rising
    layers: list[int]  # which layer of the directory has what is under the name
    end: int  # a position that no name has had yet


class Directory(Node):
    """A directory with its layers, topmost first, and those of its entries that are nodes."""

    __slots__ = ("children", "first_below", "layers", "listing", "looks", "redirect")

    is_dir = True

    def __init__(self, parent: Directory | None, name: bytes, layers: tuple[Dir, ...]) -> None:
        super().__init__(parent, name)
        self.layers = layers
        self.redirect: bytes | None = None  # what the mark on its upper directory says
        self.children: dict[bytes, Node] = {}
        self.listing: Listing | None = None
        self.first_below: dict[bytes, int] | None = None  # of many lower layers: which is the first to have a name
        self.looks = 0  # into these layers, before that was known

    @property
    def in_upper(self) -> bool:
        return self.layers[0].branch.is_upper

    def uses(self, branch: Branch) -> bool:
        return any(layer.branch is branch for layer in self.layers)

    @property
    def lowers(self) -> tuple[Dir, ...]:
        return self.layers[1:] if self.in_upper else self.layers

    def address(self) -> tuple[int, bytes]:
        self._require_open()
        return self.layers[0].fd(), b"."

    def ask(self, function: Callable[..., _T], *arguments: Any) -> _T:
        self._require_open()
        return self.layers[0].ask(function, b".", *arguments)

    def _require_open(self) -> None:
        if self.dead and self.in_upper and self.layers[0].open_fd < 0:
            raise OSError(ENOENT, os.strerror(ENOENT), self.name)

    def stat(self) -> os.stat_result:
        return self.layers[0].status()


class Table:
    """All nodes. The file system has one."""

    def __init__(self, root: Directory, numbers: Numbers) -> None:
        root.ino = root.id = ROOT
        root.lookups = 1
        self.root = root
        self.nodes: dict[int, Node] = {ROOT: root}
        self.linked: dict[tuple[int, int], File] = {}
        self.removed: dict[Branch, set[int]] = {}  # branches that are none any more, and the nodes that still use them
        self.moves = 0  # of directories
        self.epoch = 0  # another number means that something may have changed that listings show
        self._numbers = numbers
        self._memory = Memory()
        self._made_up: dict[int, tuple[int, int]] = {}  # of nodes whose number is no branch's: device, inode number

    def add(self, node: Node, device: int, ino: int) -> None:
        """Give the node its number and place. Where the branch's number is taken (a file that is gone but still
        in use had it before, or a mount inside a branch repeats it) the node gets one that no branch has."""
        number = self._numbers.of(device, ino)
        if number is None or number in self.nodes:
            number = self._numbers.make_up()
            self._made_up[number] = (device, ino)
        node.ino = node.id = number
        self.nodes[number] = node
        if node.parent is not None and not node.dead:
            node.parent.children[node.name] = node

    def is_of(self, node: Node, st: os.stat_result) -> bool:
        """Whether a node of a lower object is that of this one."""
        made_up = self._made_up.get(node.ino)
        if made_up is not None:
            return made_up == (st.st_dev, st.st_ino)
        return node.ino == self._numbers.of(st.st_dev, st.st_ino)

    def add_link(self, file: File, st: os.stat_result) -> None:
        """Remember an object that has, or may have, several names."""
        key = (st.st_dev, st.st_ino)
        file.key = key
        self.linked[key] = file

    def forget_key(self, file: File) -> None:
        if file.key is not None and self.linked.get(file.key) is file:
            del self.linked[file.key]
        file.key = None

    def forget(self, counts: Iterable[tuple[int, int]]) -> None:
        """The kernel gives references back: (number, count) pairs."""
        before = len(self.nodes)
        for ino, count in counts:
            node = self.nodes.get(ino)
            if node is None:
                continue
            if ino == node.id:
                node.lookups -= count
            elif isinstance(node, File) and node.former is not None:
                self._forget_former(node, ino, count)
            if node.lookups <= 0:
                self.release(node)
        self._memory.forgotten(before, len(self.nodes))

    def renew(self, file: File) -> None:
        """The kernel gets to know the file by another id, at its next look-up, and so as a file that nobody has open
        yet. Those who have it open go on by the one before; users see one number. It keeps that to itself."""
        former = file.former or {}
        former[file.id] = file.lookups
        file.former = former
        file.id, file.lookups = self._numbers.make_up(), 0
        self.nodes[file.id] = file

    def _forget_former(self, file: File, number: int, count: int) -> None:
        assert file.former is not None
        left = file.former[number] - count
        if left > 0:
            file.former[number] = left
            return
        del file.former[number]
        if number != file.ino:
            del self.nodes[number]
        if not file.former:
            file.former = None

    def release(self, node: Node | None) -> None:
        """Drop a node that nobody refers to, and then its parents, as far as that holds for them."""
        while node is not None and node.lookups <= 0 and node is not self.root:
            if node.is_dir and node.children:  # type: ignore[attr-defined]
                return
            if self.nodes.get(node.id) is not node or (isinstance(node, File) and node.former):
                return
            del self.nodes[node.id]
            if node.id != node.ino:
                del self.nodes[node.ino]
            self._made_up.pop(node.ino, None)
            parent = node.parent
            if parent is not None and parent.children.get(node.name) is node:
                del parent.children[node.name]
            if isinstance(node, File):
                self._close_file(node)
            elif isinstance(node, Directory):
                for layer in node.layers:
                    if layer.parent is not None:
                        layer.close()
            if self.removed:
                self._leave(node.ino)
            node = parent

    def remove_branch(self, branch: Branch) -> None:
        """Close a branch as soon as no node uses it, which may be at once."""
        users = {number for number, node in self.nodes.items() if node.uses(branch)}
        if users:
            self.removed[branch] = users
        else:
            branch.close()

    def _leave(self, number: int) -> None:
        for branch, users in list(self.removed.items()):
            users.discard(number)
            if not users:
                del self.removed[branch]
                branch.close()

    def _close_file(self, file: File) -> None:
        self.forget_key(file)
        for parent, name in file.aliases or ():
            if parent.children.get(name) is file:
                del parent.children[name]
                self.release(parent)
        file.aliases = None
        file.let_go()

    # -- names ------------------------------------------------------------------------------------------------

    def add_name(self, file: File, parent: Directory, name: bytes) -> None:
        """A further name of a file, by a look-up or a link."""
        if file.dead:
            file.parent, file.name, file.dead = parent, name, False
        else:
            if file.aliases is None:
                file.aliases = []
            file.aliases.append((parent, name))
        parent.children[name] = file

    def drop_name(self, node: Node) -> None:
        """The name (node.parent, node.name) is gone; a file goes on under another of its names if it has one."""
        parent = node.parent
        assert parent is not None
        if parent.children.get(node.name) is node:
            del parent.children[node.name]
        if isinstance(node, File) and node.aliases:
            node.parent, node.name = node.aliases.pop()
            if node.in_upper:
                node.at(node.parent.layers[0], node.name)
        else:
            node.dead = True
        self.release(parent)

    def make_primary(self, file: File, parent: Directory, name: bytes) -> None:
        """Let (parent, name), one of the file's names, be the one that the next change is about."""
        if (file.parent is parent and file.name == name) or not file.aliases:
            return
        file.aliases.remove((parent, name))
        assert file.parent is not None
        file.aliases.append((file.parent, file.name))
        file.parent, file.name = parent, name
        if file.in_upper:
            file.at(parent.layers[0], name)

    def move(self, node: Node, parent: Directory, name: bytes) -> None:
        """The node's place is another one now."""
        old = node.parent
        assert old is not None
        self.moves += node.is_dir
        if old.children.get(node.name) is node:
            del old.children[node.name]
        node.parent, node.name = parent, name
        parent.children[name] = node
        self.release(old)
