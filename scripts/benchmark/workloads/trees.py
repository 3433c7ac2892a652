"""Whole trees: mounted, walked, read, unpacked, removed."""

from benchmark.workload import FUSE_OVERLAYFS, KERNEL, State, Workload

_WALK = "find tree -printf %s"
_READ = "tar cf - tree | cat"  # GNU tar does not read what it writes to /dev/null

WORKLOADS = (
    # No program in Python starts in the time of one in C.
    Workload("mount", "until the mount answers", "tree", "", limits={FUSE_OVERLAYFS: None}, within_s=0.4),
    Workload("walk-cold", "find with sizes", "tree", _WALK, State.COLD, per="ENTRIES"),
    Workload("walk-warm", "find with sizes", "tree", _WALK, State.WARM, per="ENTRIES", limits={KERNEL: 1.3}),
    Workload(
        "walk-parallel",
        "four at the same time: find with sizes",
        "tree",
        f"for walk in 1 2 3 4; do {_WALK} & done; wait",
        State.COLD,
        per="ENTRIES",
    ),
    Workload("read-tree-cold", "tar", "tree", _READ, State.COLD, per="ENTRIES"),
    Workload("read-tree-warm", "tar", "tree", _READ, State.WARM, per="ENTRIES", limits={KERNEL: 1.3}),
    Workload(
        "untar",
        "the tree is unpacked into a new directory",
        "tree",
        "mkdir new && tar xf $MATERIAL/tree.tar -C new",
        per="ENTRIES",
        limits={FUSE_OVERLAYFS: 0.5},
    ),
    Workload(
        "rm-upper",
        "rm -rf of a tree that is in upper only",
        "tree",
        "rm -rf new",
        prepare="cp -a $LOWER/tree $UPPER/new",
        per="ENTRIES",
    ),
    Workload("rm-lower", "rm -rf of a lower tree", "tree", "rm -rf tree", per="ENTRIES", limits={FUSE_OVERLAYFS: 0.5}),
)
