"""Many files, one call or two on each."""

from benchmark.workload import FUSE_OVERLAYFS, KERNEL, SYNCED, VOLATILE, State, Workload

_FILES = "$MATERIAL/files"
_APPEND = f"$LOOPS append {_FILES}"
_CHMOD = f"$LOOPS chmod {_FILES}"

WORKLOADS = (
    Workload("append", "a byte to each of many lower files", "tree", _APPEND, per="FILES", limits=SYNCED),
    Workload("append-volatile", "the same, not synced", "tree", _APPEND, per="FILES", options=VOLATILE),
    Workload("chmod", "of many lower files", "tree", _CHMOD, per="FILES", limits=SYNCED),
    Workload("chmod-volatile", "the same, not synced", "tree", _CHMOD, per="FILES", options=VOLATILE),
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
