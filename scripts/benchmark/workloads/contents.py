"""The contents of large files: read, written, copied up."""

from benchmark.workload import FUSE_OVERLAYFS, KERNEL, PYUNION, SYNCED, VOLATILE, State, Workload

# A second name of the lower file is as good as a copy, for it is only read.
_IN_UPPER = "ln $LOWER/big $UPPER/upper-big"
_COPY_UP = "$LOOPS byte huge"
_READ, _MAP, _RANDOM = "in blocks of 1 MiB", "each word of a mapped file", "4 KiB at random places"
_PASSED = {PYUNION: "passthrough=all"}
_NATIVE = {KERNEL: 1.3}

WORKLOADS = (
    Workload("read-lower", _READ, "big", "$LOOPS read big 1048576"),
    Workload("read-lower-passed", _READ, "big", "$LOOPS read big 1048576", options=_PASSED, limits=_NATIVE),
    Workload("read-upper", _READ, "big", "$LOOPS read upper-big 1048576", prepare=_IN_UPPER, limits=_NATIVE),
    Workload("mmap-lower", _MAP, "big", "$LOOPS mmap big"),
    Workload("mmap-lower-warm", _MAP, "big", "$LOOPS mmap big", State.WARM, limits=_NATIVE),
    Workload("mmap-lower-passed", _MAP, "big", "$LOOPS mmap big", options=_PASSED, limits=_NATIVE),
    Workload("mmap-upper", _MAP, "big", "$LOOPS mmap upper-big", prepare=_IN_UPPER, limits=_NATIVE),
    Workload("random-lower", _RANDOM, "big", "$LOOPS random big $READS", per="READS"),
    Workload(
        "random-lower-passed", _RANDOM, "big", "$LOOPS random big $READS", per="READS", options=_PASSED, limits=_NATIVE
    ),
    Workload(
        "random-upper", _RANDOM, "big", "$LOOPS random upper-big $READS", prepare=_IN_UPPER, per="READS", limits=_NATIVE
    ),
    Workload("write", "a new file, in blocks of 1 MiB", "big", "$LOOPS write new 1048576 $BIG", limits=_NATIVE),
    Workload(
        "write-4k",
        "a new file, in blocks of 4 KiB",
        "big",
        "$LOOPS write new 4096 $WRITES",
        per="WRITES",
        limits={KERNEL: 2.0, FUSE_OVERLAYFS: 0.5},
    ),
    Workload("copy-up", "one byte is written to a huge lower file", "huge", _COPY_UP, limits={KERNEL: 1.1, **SYNCED}),
    Workload("copy-up-volatile", "the same, not synced", "huge", _COPY_UP, options=VOLATILE, limits={KERNEL: 1.1}),
    Workload("copy-up-xfs", "the same on XFS, which clones", "huge", _COPY_UP, file_system="xfs"),
    Workload("copy-up-btrfs", "the same on btrfs, which clones", "huge", _COPY_UP, file_system="btrfs"),
)
