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


def layout(path: Path, layers: Sequence[bytes], tag: str = "t") -> Path:
    """An OCI image layout with one image of these layers, the lowest first."""
    blobs = path / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def put(data: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": f"application/vnd.oci.image.{media_type}", "digest": f"sha256:{digest}", "size": len(data)}

    descriptors = [put(gzip.compress(data, mtime=0), "layer.v1.tar+gzip") for data in layers]
    diff_ids = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": "hand"} for _ in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "config.v1+json"),
        "layers": descriptors,
    }
    described = put(json.dumps(manifest).encode(), "manifest.v1+json")
    described["annotations"] = {"org.opencontainers.image.ref.name": tag}
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [described]}))
    (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return path
