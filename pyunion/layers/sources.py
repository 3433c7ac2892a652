"""Where images come from: OCI layouts and `docker save` archives, as a directory or as a tar file.

Owns how the image that is meant is found, and gives its config and a stream for each of its layers. Digests of what is
streamed are for the reader to check; those of what is read here are checked here.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, BinaryIO, NamedTuple, cast

from pyunion.errors import ExitCode, PyunionError
from pyunion.layers import imageconfig, oci, streams, tarreader

_MOST_JSON = 8 << 20
_MOST_MEMBERS = 100_000


class SourceLayer(NamedTuple):
    """A layer as the image has it."""

    open: Callable[[], BinaryIO]
    digest: str | None  # of the blob; None: only what is in it has a digest
    size: int | None  # of the blob
    diff_id: str


class SourceImage(NamedTuple):
    """An image that can be unpacked."""

    tag: str
    config: oci.Json
    layers: list[SourceLayer]  # lowest first


def open_image(path: bytes, tag: str | None, stack: ExitStack, scratch: bytes) -> SourceImage:
    """The image of a layout or archive; of several the one with this tag. `scratch` is a directory for what has to be
    unpacked first. Raises PyunionError."""
    try:
        with oci.well_formed():
            image = _opened(path, tag, stack, scratch)
            imageconfig.program(image.config)
            return image
    except OSError as error:
        raise PyunionError(f"cannot read {os.fsdecode(path)}: {error.strerror}") from None


def _opened(path: bytes, tag: str | None, stack: ExitStack, scratch: bytes) -> SourceImage:
    if os.path.isdir(path):
        return _of_layout(oci.Layout(path), tag)
    files = _Files(path, stack, scratch)
    if "manifest.json" in files.members:
        return _of_docker(files, tag)
    return _of_layout(_ArchivedLayout(path, files), tag)


def _of_layout(layout: oci.Layout, tag: str | None) -> SourceImage:
    tags = layout.tags()
    found, descriptor = _chosen({str(name or "latest"): each for name, each in tags.items()}, tag)
    image = layout.image(descriptor)
    layers = []
    for layer in image.layers():
        digest = oci.checked(layer.descriptor.get("digest"))
        layers.append(SourceLayer(_opener(layout, digest), digest, layer.descriptor.get("size"), layer.diff_id))
    return SourceImage(found, image.config, layers)


def _opener(layout: oci.Layout, digest: str) -> Callable[[], BinaryIO]:
    return lambda: layout.open_blob(digest)


def _of_docker(files: _Files, tag: str | None) -> SourceImage:
    """manifest.json of `docker save`: a list of images with the names of their files."""
    try:
        listed = json.loads(files.read("manifest.json"))
        untagged = [each for each in listed if not each.get("RepoTags")]
        images = {str(name): each for each in listed for name in each.get("RepoTags") or ()}
        if len(untagged) == 1:
            images.setdefault("latest", untagged[0])
        else:
            images |= {_digest(str(each["Config"]))[:12]: each for each in untagged}
        found, entry = _chosen(images, tag)
        config_name, layer_names = str(entry["Config"]), [str(name) for name in entry["Layers"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise PyunionError("manifest.json is not that of an image archive; it is damaged") from None
    data = files.read(config_name)
    if hashlib.sha256(data).hexdigest() != _digest(config_name):
        raise PyunionError(f"{config_name} is not what its digest says; the image is damaged or was changed")
    config = oci.parsed(data, config_name)
    diff_ids = config.get("rootfs", {}).get("diff_ids", [])
    if len(diff_ids) != len(layer_names):
        raise PyunionError(f"the image has {len(layer_names)} layers, and its config says {len(diff_ids)}")
    layers = [
        SourceLayer(files.opener(name), None, None, oci.checked(diff_id))
        for name, diff_id in zip(layer_names, diff_ids, strict=True)
    ]
    return SourceImage(found, config, layers)


def _digest(config_name: str) -> str:
    return os.path.basename(config_name).removesuffix(".json")


def _chosen(images: dict[str, Any], tag: str | None) -> tuple[str, Any]:
    if tag is None and len(images) == 1:
        return next(iter(images.items()))
    wanted = "latest" if tag is None else tag
    if wanted not in images:  # docker.io/library/name:tag by its short name
        ends = [name for name in images if name.endswith(f"/{wanted}")]
        wanted = ends[0] if len(ends) == 1 else wanted
    if wanted not in images:
        names = ", ".join(sorted(images)) or "none"
        raise PyunionError(f"there is no image '{wanted}' here; there are: {names}", ExitCode.USAGE)
    return wanted, images[wanted]


class _Files:
    """The regular files of a tar archive, which are read where they are."""

    def __init__(self, path: bytes, stack: ExitStack, scratch: bytes) -> None:
        self._file = stack.enter_context(open(path, "rb", buffering=0))  # noqa: SIM115
        with open(path, "rb") as packed:
            plain = streams.decompressed(packed)
            if plain is not None:
                self._file = stack.enter_context(tempfile.TemporaryFile(dir=scratch, buffering=0))  # noqa: SIM115
                while data := plain.read(1 << 20):
                    self._file.write(data)
        self.members: dict[str, tuple[int, int]] = {}
        links: list[tuple[str, str]] = []
        seekable = _Slice(self._file.fileno(), 0, os.fstat(self._file.fileno()).st_size)
        for member in tarreader.TarReader(cast(streams.Source, io.BufferedReader(seekable))):
            name = os.path.normpath(member.name)
            if member.isreg() and not member.issparse():
                self.members[name] = member.offset_data, member.size
            elif member.issym():  # old versions of docker have a layer once, and links to it
                links.append((name, os.path.normpath(os.path.join(os.path.dirname(name), member.linkname))))
            elif member.islnk():
                links.append((name, os.path.normpath(member.linkname)))
            if len(self.members) + len(links) > _MOST_MEMBERS:
                raise PyunionError(f"{os.fsdecode(path)} is no archive of an image: it has too many files")
        for name, target in links:
            if target in self.members:
                self.members[name] = self.members[target]

    def open(self, name: str) -> BinaryIO:
        found = self.members.get(os.path.normpath(name))
        if found is None:
            raise PyunionError(f"the archive has no file {name}; it is damaged")
        return cast(BinaryIO, _Slice(self._file.fileno(), *found))

    def opener(self, name: str) -> Callable[[], BinaryIO]:
        return lambda: self.open(name)

    def read(self, name: str) -> bytes:
        """All of a small file."""
        file = self.open(name)
        data = file.read(_MOST_JSON + 1)
        if len(data) > _MOST_JSON:
            raise PyunionError(f"{name} is too large for a description of an image")
        return data


class _ArchivedLayout(oci.Layout):
    """An image layout in a tar file."""

    def __init__(self, path: bytes, files: _Files) -> None:
        super().__init__(path)
        self._files = files
        if "index.json" not in files.members:
            raise PyunionError(
                f"{os.fsdecode(path)} is no image: it has neither a manifest.json (docker save) nor an index.json (OCI)"
            )

    def tags(self) -> dict[str | None, oci.Json]:
        return oci.tags_of(oci.parsed(self._files.read("index.json"), "index.json"))

    def open_blob(self, digest: str) -> BinaryIO:
        return self._files.open("blobs/sha256/" + oci.checked(digest).partition(":")[2])


class _Slice(io.RawIOBase):
    """A part of a file."""

    def __init__(self, fd: int, start: int, size: int) -> None:
        self._fd = fd
        self._position = start
        self._end = start + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._fd, min(len(buffer), self._end - self._position), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


