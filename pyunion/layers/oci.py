"""OCI image layouts (image-spec, image-layout.md): images by tag, blobs by digest.

Owns the files of a layout and the JSON of index, manifest and config, and how a layer comes on top of an image. A blob
is written whole under a name of its own and renamed; the index, which names the images, is renamed last of all, so that
a layout is never half changed. What is in a layer is none of its business.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any, BinaryIO, NamedTuple

from pyunion.errors import PyunionError
from pyunion.interrupts import put_off
from pyunion.layers import streams

Json = dict[str, Any]

_INDEX = "application/vnd.oci.image.index.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_DOCKER = "application/vnd.docker."
_SUFFIX = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}
_REF = "org.opencontainers.image.ref.name"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_UNFINISHED = b".new-"  # in the names of files that are being written
_MOST_JSON = 8 << 20  # bytes
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


@contextlib.contextmanager
def well_formed() -> Iterator[None]:
    """JSON that is not of the form that it should have is told by a sentence."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise PyunionError(f"the image is not described as images are, it is damaged or hostile: {error}") from None


class Layer(NamedTuple):
    """A layer blob and what it says unpacked."""

    descriptor: Json
    diff_id: str


class Image(NamedTuple):
    """A manifest and the config that it names."""

    manifest: Json
    config: Json

    def layers(self) -> list[Layer]:
        """Lowest first. Raises PyunionError where config and manifest contradict each other."""
        diff_ids = self.config.get("rootfs", {}).get("diff_ids", [])
        descriptors = self.manifest.get("layers", [])
        if len(diff_ids) != len(descriptors):
            raise PyunionError(f"the image has {len(descriptors)} layers, and its config says {len(diff_ids)}")
        return [Layer(descriptor, checked(diff_id)) for descriptor, diff_id in zip(descriptors, diff_ids, strict=True)]


class Layout:
    """An image layout in a directory."""

    def __init__(self, path: bytes) -> None:
        self.path = path

    @classmethod
    def make(cls, path: bytes) -> Layout:
        """The layout at a path, which is begun if nothing is there. Raises PyunionError and OSError."""
        os.makedirs(os.path.join(path, b"blobs/sha256"), exist_ok=True)
        layout = cls(path)
        if not os.path.exists(layout._at("oci-layout")):
            layout._put("oci-layout", encoded({"imageLayoutVersion": "1.0.0"}))
        if not os.path.exists(layout._at("index.json")):
            layout._put("index.json", encoded({"schemaVersion": 2, "mediaType": _INDEX, "manifests": []}))
        return layout

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else of us changes the layout meanwhile."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            for folder in (self.path, self._at("blobs/sha256")):
                for name in os.listdir(folder):
                    if _UNFINISHED in name:  # of somebody who was killed
                        os.unlink(os.path.join(folder, name))
            yield
        finally:
            os.close(fd)

    def tags(self) -> dict[str | None, Json]:
        """The descriptors of the images by tag."""
        return tags_of(self._read_json(self._at("index.json")))

    @well_formed()
    def image(self, descriptor: Json) -> Image:
        """The image of a descriptor; of an index of several platforms that of this machine."""
        manifest = self.blob_json(descriptor)
        while "manifests" in manifest:  # as each is named by its digest, none can name itself
            manifest = self.blob_json(_for_this_machine(manifest["manifests"]))
        image = Image(manifest, self.blob_json(manifest.get("config", {})))
        image.layers()
        return image

    def open_blob(self, digest: str) -> BinaryIO:
        """A blob; whether it is what its digest says is for the reader to see."""
        return open(self._at("blobs/sha256/" + checked(digest).partition(":")[2]), "rb", buffering=0)

    def blob_json(self, descriptor: Json) -> Json:
        digest = checked(descriptor.get("digest"))
        with self.open_blob(digest) as file:
            data = file.read(_MOST_JSON + 1)
        if len(data) > _MOST_JSON:
            raise PyunionError(f"{digest} is too large for a description of an image")
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
            raise PyunionError(f"{digest} is not what its digest says; the image is damaged or was changed")
        return parsed(data, digest)

    def put_json(self, value: Json, media_type: str) -> Json:
        """Store a description; returns its descriptor."""
        data = encoded(value)
        digest = hashlib.sha256(data).hexdigest()
        self._put(f"blobs/sha256/{digest}", data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def put_layer(self, compression: str, write: Callable[[streams.HashingWriter], None]) -> Layer:
        """Store a layer that `write` writes as a tar archive."""
        with put_off() as let_in, tempfile.NamedTemporaryFile(dir=self._at("blobs/sha256"), prefix=_UNFINISHED) as file:
            blob = streams.HashingWriter(file)
            packed = streams.compressor(compression, blob)
            tar = streams.HashingWriter(packed)
            with let_in():
                write(tar)
                packed.close()
                file.flush()
                os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            place = self._at("blobs/sha256/" + blob.digest.partition(":")[2])
            with contextlib.suppress(FileExistsError):
                os.link(file.name, place)
        media_type = _LAYER + _SUFFIX[compression]
        return Layer({"mediaType": media_type, "digest": blob.digest, "size": blob.size}, tar.digest)

    def put_image(self, tag: str, image: Image) -> Json:
        """Store an image and let the tag name it; returns its descriptor."""
        config = self.put_json(image.config, CONFIG)
        descriptor = self.put_json({**image.manifest, "config": config}, _MANIFEST)
        index = self._read_json(self._at("index.json"))
        kept = [each for each in index.get("manifests", []) if each.get("annotations", {}).get(_REF) != tag]
        index["manifests"] = [*kept, {**descriptor, "annotations": {_REF: tag}}]
        self._put("index.json", encoded(index))
        return descriptor

    def _at(self, name: str) -> bytes:
        return os.path.join(self.path, name.encode("ascii"))

    def _put(self, name: str, data: bytes) -> None:
        temporary = self._at(name) + _UNFINISHED + b"%d" % os.getpid()
        with put_off():
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, self._at(name))

    def _read_json(self, path: bytes) -> Json:
        try:
            with open(path, "rb") as file:
                return parsed(file.read(_MOST_JSON), os.fsdecode(path))
        except FileNotFoundError:
            raise PyunionError(f"{os.fsdecode(self.path)} is no OCI image layout: it has no index.json") from None


@well_formed()
def tags_of(index: Json) -> dict[str | None, Json]:
    """The descriptors of an index by tag; of several without one, that of this machine, or each by its digest."""
    found: dict[str | None, Json] = {}
    untagged = []
    for each in index.get("manifests", []):
        tag = (each.get("annotations") or {}).get(_REF)
        if tag is None:
            untagged.append(each)
        else:
            found[str(tag)] = each
    if len(untagged) == 1:
        found[None] = untagged[0]
    elif any("platform" in each for each in untagged):
        found[None] = _for_this_machine(untagged)
    else:
        found |= {short(each.get("digest")): each for each in untagged}
    return found


def short(digest: object) -> str:
    """A name for what has no other one, as docker and podman shorten digests."""
    return checked(digest).partition(":")[2][:12]


def new_image() -> Image:
    """An image without layers for this machine."""
    machine = platform.machine()
    config: Json = {
        "architecture": _ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": []},
        "history": [],
    }
    return Image({"schemaVersion": 2, "mediaType": _MANIFEST, "layers": []}, config)


def with_layer(image: Image, layer: Layer, created: int, created_by: str) -> Image:
    """The image with one layer more on top. `created` is in seconds since 1970."""
    when = datetime.fromtimestamp(created, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    rootfs = image.config.get("rootfs", {})
    config = {
        **image.config,
        "created": when,
        "rootfs": {"type": "layers", "diff_ids": [*rootfs.get("diff_ids", []), layer.diff_id]},
        "history": [*(image.config.get("history") or []), {"created": when, "created_by": created_by}],
    }
    below = [_as_oci(descriptor) for descriptor in image.manifest.get("layers", [])]
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "layers": [*below, layer.descriptor]}
    return Image(manifest, config)


def with_layers(config: Json, layers: list[Layer]) -> Image:
    """An image of this config, but with these layers, which stand for those that the config knows of."""
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "layers": [layer.descriptor for layer in layers]}
    return Image(manifest, {**config, "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]}})


def _as_oci(descriptor: Json) -> Json:
    """Docker's names for the same things."""
    media_type = str(descriptor.get("mediaType", ""))
    if not media_type.startswith(_DOCKER):
        return descriptor
    return {**descriptor, "mediaType": _LAYER + ("+gzip" if media_type.endswith("gzip") else "")}


def _for_this_machine(manifests: list[Json]) -> Json:
    wanted = _ARCHITECTURES.get(platform.machine(), platform.machine())
    for each in manifests:
        on = each.get("platform") or {}
        if (on.get("architecture"), on.get("os")) == (wanted, "linux"):
            return each
    if len(manifests) == 1 and "platform" not in manifests[0]:
        return manifests[0]
    raise PyunionError(f"the image is not made for this machine (linux/{wanted})")


def checked(digest: object) -> str:
    """A digest that is one, and so can be a file's name. Raises PyunionError."""
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise PyunionError(f"{digest!r} is no sha256 digest; the image is damaged, or has digests of another kind")
    return digest


def encoded(value: Json | list[Json]) -> bytes:
    """The same bytes for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def parsed(data: bytes, what: str) -> Json:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise PyunionError(f"{what} is not the JSON that describes an image")
    return value
