"""What a workload is, in which state it finds the caches, and how large everything is.

Knows none of the workloads and none of the systems.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

KERNEL, FUSE_OVERLAYFS, UNIONFS, PYUNION = "kernel", "fuse-overlayfs", "unionfs-fuse", "pyunion"

# fuse-overlayfs does not sync what it copies up, ever; so there are workloads in which nobody does, and in the others
# its time is no measure.
VOLATILE = dict.fromkeys((KERNEL, PYUNION), "volatile")
SYNCED: dict[str, float | None] = {FUSE_OVERLAYFS: None}


class State(enum.Enum):
    """What comes before the clock starts; every system is mounted anew for each round."""

    COLD = "the kernel's caches are dropped after the mount (3 to drop_caches)"
    FRESH = "the lower branches are in the page cache, and nothing was asked of this mount"
    WARM = "the same was done once in this mount"


@dataclass(frozen=True)
class Workload:
    """A script for `sh -e` in the root of the union, timed from its start to its end.

    The scripts find in their environment $LOOPS (the program of loops.c), $LOWER (the topmost lower branch), $UPPER,
    $MATERIAL (a directory with lists of names and archives) and the numbers of Sizes and of the material.
    """

    name: str
    what: str
    material: str  # by its name in materials.MAKERS
    script: str  # empty: what is timed is the mount
    state: State = State.FRESH
    prepare: str = ""  # a script that is run before the mount, where $UPPER is still a directory like others
    per: str = ""  # the number, by its name in the environment, of the operations that the script makes; else one
    limits: Mapping[str, float | None] = field(default_factory=dict)  # by system: how often its time pyunion may take
    within_s: float | None = None  # or how many seconds, whatever others take
    options: Mapping[str, str] = field(default_factory=dict)  # by system: mount options
    file_system: str = ""  # the branches are on a new file system of this type, not on the machine's own
    long: bool = False  # too long for --quick
    keeps_memory: bool = False  # the daemon's memory after it is looked at, and after the kernel's caches are dropped


@dataclass(frozen=True)
class Sizes:
    """Counts and MiB; each is a variable in the scripts' environment, in capitals."""

    tree: int = 100_000  # at most so many entries are taken
    files: int = 2000  # are changed, opened or asked for
    opens: int = 10  # of each file
    stats: int = 100  # of each file
    creations: int = 5000
    big: int = 256  # MiB of the file that is read
    huge: int = 1024  # MiB of the file that is copied up
    reads: int = 20_000
    writes: int = 20_000
    sources: int = 40  # are compiled
    layer_files: int = 20  # in each of 100 layers

    def environment(self) -> dict[str, str]:
        return {name.upper(): str(value) for name, value in vars(self).items()}


QUICK = Sizes(
    tree=1000,
    files=300,
    opens=4,
    stats=30,
    creations=500,
    big=32,
    huge=64,
    reads=2000,
    writes=4000,
    sources=6,
    layer_files=3,
)
