"""`pyunion units`: what systemd has to know of the services pyunion@NAME and cannot read in their files.

Owns the drop-ins that systemd/pyunion-generator leaves for systemd (systemd.generator(7)). It looks at no branch, as it
runs before anything is mounted.
"""

from __future__ import annotations

import os
import re
import sys
from argparse import Namespace
from pathlib import Path

from pyunion import configfile
from pyunion.configfile import ConfigFile
from pyunion.errors import ExitCode, PyunionError, printable

_DROP_IN = """\
# Written by pyunion-generator from {source}
[Unit]
SourcePath={source}
RequiresMountsFor={paths}
"""
# The service has no network but for this.
_METRICS = """\
[Service]
RestrictAddressFamilies=AF_INET AF_INET6
IPAddressAllow={addresses}
"""
_LOOPBACK = re.compile(r"(localhost|127\.[0-9.]+|\[::1\]):\d+")


def run(arguments: Namespace) -> int:
    """Write a drop-in for each file. One that is wrong is left to its own service, which will say so when it starts."""
    for source in sorted(Path(arguments.configs).glob("*.toml")):
        try:
            file = configfile.read(str(source))
        except PyunionError as error:
            print(f"pyunion: {printable(str(error))}", file=sys.stderr)
            continue
        _write(Path(arguments.directory) / f"pyunion@{source.stem}.service.d", source, file)
    return ExitCode.OK


def _write(folder: Path, source: Path, file: ConfigFile) -> None:
    paths = [path for path in (*file.lower, file.upper, file.work) if path]
    if file.mountpoint:
        # Not the mount point: the mount there is ours, and waits for the service.
        paths.append(os.path.dirname(os.path.normpath(file.mountpoint)))
    folder.mkdir(parents=True, exist_ok=True)
    words = " ".join(f'"{_escaped(path)}"' for path in paths if b"\n" not in path)  # which no unit file can say
    text = _DROP_IN.format(source=source, paths=words)
    if file.metrics is not None:
        text += _METRICS.format(addresses="localhost" if _LOOPBACK.fullmatch(file.metrics) else "any")
    (folder / "50-mounts.conf").write_bytes(os.fsencode(text))


def _escaped(path: bytes) -> str:
    """A path between double quotes in a unit file (systemd.syntax(7)), where % begins a specifier too."""
    return re.sub(r'["\\]', r"\\\g<0>", os.fsdecode(path)).replace("%", "%%")
