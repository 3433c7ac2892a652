"""Many files, one call or two on each."""

from benchmark.workload import FUSE_OVERLAYFS, KERNEL, State, Workload

_FILES = "$MATERIAL/files"

WORKLOADS = (
    Workload("append", "a byte to each of many lower files", "tree", f"$LOOPS append {_FILES}", per="FILES"),
    Workload("chmod", "of many lower files", "tree", f"$LOOPS chmod {_FILES}", per="FILES"),
    Workload("open", "open and close of lower files, again and again", "tree", f"$LOOPS open {_FILES} $OPENS"),
    Workload(
        "stat",
        "of lower files, again and again",
        "tree",
        f"$LOOPS stat {_FILES} $STATS",
        State.WARM,
        limits={KERNEL: 1.3},
    ),
    Workload(
        "create-unlink",
        "a new file, closed and removed",
        "tree",
        "$LOOPS create $CREATIONS",
        per="CREATIONS",
        limits={FUSE_OVERLAYFS: 0.5},
    ),
)
