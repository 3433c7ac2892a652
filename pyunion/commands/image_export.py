"""`pyunion export`: an image of directories becomes one of archives, for other programs.

Owns that an archive has both forms in it, the OCI layout and what `docker load` reads.
"""

from __future__ import annotations

import os
import time
from argparse import Namespace

from pyunion.branch import syscalls
from pyunion.commands import counting, given
from pyunion.errors import ExitCode, PyunionError
from pyunion.layers import export, oci, staging
from pyunion.layers.store import Store


@given.failures_told()
@given.ended_in_order()
def run(arguments: Namespace) -> int:
    dest, _, name = arguments.image.partition(":") if not os.path.isdir(arguments.image) else (arguments.image, "", "")
    if not os.path.isdir(dest):
        raise PyunionError(f"{dest} does not exist, or is no directory; correct the path", ExitCode.BRANCH)
    store = Store(os.fsencode(dest))
    name = given.only_image(store, name or None)
    epoch = given.source_date_epoch(arguments)
    if not arguments.out.endswith(".tar"):
        path, tag = given.layout_and_tag(arguments.out)
        _export(store, name, oci.Layout.make(path), tag, arguments, epoch)
        return ExitCode.OK
    out = os.path.abspath(os.fsencode(arguments.out))
    if os.path.lexists(out):
        raise PyunionError(f"{arguments.out} is there already; name a new file", ExitCode.USAGE)
    with staging.scratch(os.path.dirname(out)) as (scratch, _):
        layout = oci.Layout.make(os.path.join(scratch, b"layout"))
        image = _export(store, name, layout, name.rpartition(":")[2], arguments, epoch)
        archive = os.path.join(scratch, b"archive")
        export.write_archive(layout, image, name, archive, int(time.time()) if epoch is None else epoch)
        syscalls.renameat2(syscalls.AT_FDCWD, archive, syscalls.AT_FDCWD, out, syscalls.RENAME_NOREPLACE)
    return ExitCode.OK


def _export(
    store: Store, name: str, layout: oci.Layout, tag: str, arguments: Namespace, epoch: int | None
) -> oci.Image:
    with layout.locked(), counting.objects() as tell:
        return export.export(store, name, layout, tag, arguments.compression, epoch, tell)
