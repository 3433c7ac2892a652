"""Image layouts written by hand, so that they can be wrong in any way."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

Fill = Callable[[tarfile.TarFile], None]
Pack = Callable[[bytes], bytes]


def layer(fill: Fill) -> bytes:
    """A layer that `fill` fills."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        fill(archive)
    return file.getvalue()


def members(*described: str) -> bytes:
    """A layer of members: `path` is an empty file, `path: text` a file, `path/` a directory, `path -> target` a
    symlink, `path = path` a hard link."""

    def fill(archive: tarfile.TarFile) -> None:
        for text in described:
            if " -> " in text:
                name, target = text.split(" -> ")
                add(archive, name, type=tarfile.SYMTYPE, linkname=target)
            elif " = " in text:
                name, target = text.split(" = ")
                add(archive, name, type=tarfile.LNKTYPE, linkname=target)
            elif text.endswith("/"):
                add(archive, text, type=tarfile.DIRTYPE, mode=0o755)
            else:
                name, _, content = text.partition(": ")
                add(archive, name, content.encode())

    return layer(fill)


def add(archive: tarfile.TarFile, name: str, content: bytes = b"", mode: int = 0o644, **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.mode, member.mtime, member.size = mode, 1_600_000_000, len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(content))


def put(path: Path, data: bytes, media_type: str) -> dict[str, object]:
    """Store a blob in a layout; returns its descriptor."""
    digest = hashlib.sha256(data).hexdigest()
    (path / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (path / "blobs/sha256" / digest).write_bytes(data)
    return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": f"sha256:{digest}", "size": len(data)}


def index(path: Path, *described: dict[str, object]) -> None:
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": described}))


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def layout(path: Path, layers: Sequence[bytes], tag: str = "t", config: object = None, pack: Pack = gzipped) -> Path:
    """An OCI image layout with one image of these layers, the lowest first. `config` is of the program in it."""
    descriptor = image(path, layers, {} if config is None else config, pack)
    index(path, descriptor | {"annotations": {"org.opencontainers.image.ref.name": tag}})
    (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return path


def image(path: Path, layers: Sequence[bytes], config: object, pack: Pack = gzipped) -> dict[str, object]:
    """Store an image that no index names yet; returns its descriptor."""
    descriptors = [put(path, pack(data), "layer.v1.tar+gzip") for data in layers]
    diff_ids = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
    described = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": "hand"} for _ in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(path, json.dumps(described).encode(), "config.v1+json"),
        "layers": descriptors,
    }
    return put(path, json.dumps(manifest).encode(), "manifest.v1+json")


def docker_archive(path: Path, layers: Sequence[bytes], *tags: list[str] | None, link: bytes = tarfile.SYMTYPE) -> None:
    """What `docker save` wrote before version 25, of images of these layers with these tags. Layers that are alike are
    there once, and links to it."""
    entries = []
    written: dict[bytes, str] = {}
    with tarfile.open(path, "w") as archive:
        names = [f"layer{number}/layer.tar" for number in range(len(layers))]
        for name, data in zip(names, layers, strict=True):
            if data in written:
                to = f"../{written[data]}" if link == tarfile.SYMTYPE else written[data]
                add(archive, name, type=link, linkname=to)
            else:
                add(archive, name, data)
                written[data] = name
        for number, tagged in enumerate(tags):
            diff_ids = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
            config = {"config": {"Env": [f"NUMBER={number}"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
            said = json.dumps(config).encode()
            place = f"{hashlib.sha256(said).hexdigest()}.json"
            add(archive, place, said)
            entries.append({"Config": place, "RepoTags": tagged, "Layers": names})
        add(archive, "manifest.json", json.dumps(entries).encode())
