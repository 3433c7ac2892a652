"""Stands in for mount(8) while a suite runs: mounts "-t fuse.pyunion" with this checkout, leaves all else to mount(8).

Branches come from the options as for overlayfs, or, for suites that know only a device, are those of the directory
$CONFORMANCE_LAYERS/DEVICE.
"""

from __future__ import annotations

import os
import sys

REAL = "/bin/mount"


def main(arguments: list[str]) -> None:
    kind, options, rest = "", [], []
    words = iter(arguments)
    for word in words:
        if word == "-t":
            kind = next(words)
        elif word.startswith("-o"):
            options += (word[2:] or next(words)).split(",")
        else:
            rest.append(word)
    if kind != "fuse.pyunion":
        os.execv(REAL, ["mount", *arguments])
    if "remount" in options:
        # The kernel's own business; -i, or mount(8) would look for a program that helps with this type.
        os.execv(REAL, ["mount", "-i", "-o", ",".join(options), rest[-1]])
    device, point = rest
    if not any(option.startswith("lowerdir=") for option in options):
        layers = f"{os.environ['CONFORMANCE_LAYERS']}/{device}"
        options.append(f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work")
    options.append(f"fsname={device}")
    os.execv(sys.executable, [sys.executable, "-m", "pyunion", "mount", "-o", ",".join(filter(None, options)), point])


if __name__ == "__main__":
    main(sys.argv[1:])
