"""Images as directories: one for each layer, named by its chain id, so that images share what they have in common.

Owns the form of such a store: layers/ID is a branch with overlayfs's marks, images/NAME.json an image with its config.
A layer is there whole or not at all, and an image when all its layers are.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from urllib.parse import quote

from pyunion.branch import syscalls
from pyunion.branch.dirs import Branch, DirCache
from pyunion.branch.work import remove_tree
from pyunion.errors import ExitCode, PyunionError
from pyunion.interrupts import put_off
from pyunion.layers import oci, staging, streams, tarreader
from pyunion.layers.sources import SourceImage, SourceLayer
from pyunion.layers.telling import Tell, nobody
from pyunion.layers.tree import Tree, default_prefix, open_branches
from pyunion.layers.unpack import Unpacker

_MOST_OPEN = 256
_CHUNK = 1 << 20


class Store:
    """A directory with images."""

    def __init__(self, path: bytes, tell: Tell = nobody) -> None:
        self.path = os.path.abspath(path)
        self._tell = tell
        self._layers = os.path.join(self.path, b"layers")
        self._images = os.path.join(self.path, b"images")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Make it if it is not there, and keep others of us from changing it. What was left unfinished is removed."""
        fd, made = self._begun()
        try:
            staging.remove_unfinished(self._layers)
            yield
        except BaseException:
            for path in made:
                with contextlib.suppress(OSError):  # it has something, and stays
                    os.rmdir(path)
            raise
        finally:
            os.close(fd)

    def _begun(self) -> tuple[int, list[bytes]]:
        """A descriptor with a lock, and which directories were made; one that has failed may just have removed them."""
        parts = (self._images, self._layers, self.path)
        while True:
            made = [path for path in parts if not os.path.isdir(path)]
            for path in parts:
                os.makedirs(path, exist_ok=True)
            fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
            if os.fstat(fd).st_nlink and all(map(os.path.isdir, parts)):
                return fd, made
            os.close(fd)

    def add(self, image: SourceImage, name: str) -> list[bytes]:
        """Unpack an image under a name; returns its layers, topmost first. Raises PyunionError; nothing stays then."""
        new: list[bytes] = []
        chain: list[str] = []
        with put_off() as let_in:
            try:
                for layer in image.layers:
                    chain.append(_chain_id(chain[-1:], layer.diff_id))
                    place = self._layer(chain[-1])
                    if not os.path.isdir(place):
                        with staging.staged(place) as fd, let_in():
                            self._unpack(layer, fd, place, [self._layer(each) for each in reversed(chain[:-1])])
                        new.append(place)
                self._write(name, {"config": image.config, "layers": chain})
            except BaseException:
                for place in new:
                    remove_tree(syscalls.AT_FDCWD, place)
                raise
        return self.layers(name)

    def layers(self, name: str) -> list[bytes]:
        """The layers of an image, topmost first."""
        return [self._layer(oci.checked(each)) for each in reversed(self._read(name)["layers"])]

    def config(self, name: str) -> oci.Json:
        return dict(self._read(name)["config"])

    def names(self) -> list[str]:
        return sorted(os.fsdecode(each.removesuffix(b".json")) for each in os.listdir(self._images))

    def _layer(self, chain_id: str) -> bytes:
        return os.path.join(self._layers, chain_id.partition(":")[2].encode())

    def _image(self, name: str) -> bytes:
        return os.path.join(self._images, quote(name, safe=":").encode() + b".json")

    def _unpack(self, layer: SourceLayer, fd: int, place: bytes, below: Sequence[bytes]) -> None:
        with ExitStack() as stack:
            tree: Tree | None = open_branches(None, below, stack).below if below else None
            branch = Branch(0, place, os.dup(fd), DirCache(_MOST_OPEN), xattr_prefix=default_prefix())
            stack.callback(branch.root.close)
            unpack_layer(layer, branch, tree, self._tell)

    def _write(self, name: str, value: oci.Json) -> None:
        path = self._image(name)
        with open(path + b".new", "wb") as file:
            file.write(oci.encoded(value))
            file.flush()
            os.fsync(file.fileno())
        os.rename(path + b".new", path)

    def _read(self, name: str) -> oci.Json:
        try:
            with open(self._image(name), encoding="utf-8") as file:
                return dict(json.load(file))
        except FileNotFoundError:
            raise PyunionError(f"there is no image '{name}' in {os.fsdecode(self.path)}", ExitCode.USAGE) from None


def unpack_layer(layer: SourceLayer, branch: Branch, below: Tree | None, tell: Tell) -> None:
    """Unpack a layer into an empty branch, and see that all its digests are right. Raises PyunionError."""
    with layer.open() as file:
        blob = streams.HashingReader(file)
        buffered = io.BufferedReader(blob, _CHUNK)
        plain = streams.HashingReader(streams.decompressed(buffered) or buffered)
        tar = io.BufferedReader(plain, _CHUNK)
        Unpacker(branch, below).unpack(tarreader.TarReader(tar), tell)
        while tar.read(_CHUNK) or buffered.read(_CHUNK):
            pass  # what comes after the end of the archive belongs to its digest
    for what, said, found in (
        ("its digest", layer.digest, blob.digest),
        ("its size", layer.size, blob.size),
        ("the digest of what is in it", layer.diff_id, plain.digest),
    ):
        if said is not None and said != found:
            raise PyunionError(
                f"a layer is damaged or was changed: {what} should be {said}, and is {found}; get the image anew"
            )


def _chain_id(below: list[str], diff_id: str) -> str:
    """image-spec, config.md, "Layer ChainID"."""
    if not below:
        return diff_id
    return f"sha256:{hashlib.sha256(f'{below[0]} {diff_id}'.encode()).hexdigest()}"
