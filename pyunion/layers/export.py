"""An image of a store becomes one of an OCI layout again, and an archive that other programs load.

Owns the way back: each layer is written anew, so that its digests, and those of what names it, are others than those of
the image that was imported, if that was written by another program.
"""

from __future__ import annotations

import io
import os
import tarfile
from contextlib import ExitStack

from pyunion.layers import items, oci, streams, tarwriter
from pyunion.layers.store import Store
from pyunion.layers.telling import Tell, told
from pyunion.layers.tree import Tree, open_branches


def export(
    store: Store, name: str, layout: oci.Layout, tag: str, compression: str, epoch: int | None, tell: Tell
) -> oci.Image:
    """Write the layers of an image, and the image with its own config. Raises PyunionError and OSError."""
    paths = store.layers(name)
    config = store.config(name)
    layers = []
    with ExitStack() as stack:
        opened = open_branches(None, paths, stack).lowers
        for position in reversed(range(len(opened))):
            tree = Tree(opened[position:])

            def write(sink: streams.Sink, tree: Tree = tree) -> None:
                tarwriter.TarWriter(sink, epoch).write(told(items.layer_items(tree), tell))

            layers.append(layout.put_layer(compression, write))
    image = oci.with_layers(config, layers)
    layout.put_image(tag, image)
    return image


def write_archive(layout: oci.Layout, image: oci.Image, name: str, path: bytes, now: int) -> None:
    """A tar file of a layout that holds one image, with the manifest.json of `docker save`; on disk when it returns."""
    config = layout.put_json(image.config, oci.CONFIG)
    manifest = {
        "Config": _blob(config),
        "RepoTags": [name if ":" in name else f"{name}:latest"],
        "Layers": [_blob(layer) for layer in image.manifest["layers"]],
    }
    with open(path, "wb") as out:
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
            _add(archive, "manifest.json", oci.encoded([manifest]), now)
            for folder, names, files in os.walk(layout.path):
                names.sort()
                for each in sorted(files):
                    place = os.path.join(folder, each)
                    member = tarfile.TarInfo(os.fsdecode(os.path.relpath(place, layout.path)))
                    with open(place, "rb") as file:
                        member.size, member.mtime, member.mode = os.fstat(file.fileno()).st_size, now, 0o644
                        archive.addfile(member, file)
        out.flush()
        os.fsync(out.fileno())


def _add(archive: tarfile.TarFile, name: str, data: bytes, now: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime, member.mode = len(data), now, 0o644
    archive.addfile(member, io.BytesIO(data))


def _blob(descriptor: oci.Json) -> str:
    return "blobs/sha256/" + str(descriptor["digest"]).partition(":")[2]
