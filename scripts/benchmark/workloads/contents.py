"""The contents of large files: read, written, copied up."""

from benchmark.workload import FUSE_OVERLAYFS, KERNEL, Workload

# A second name of the lower file is as good as a copy, for it is only read.
_IN_UPPER = "ln $LOWER/big $UPPER/upper-big"
_COPY_UP = "$LOOPS byte huge"

WORKLOADS = (
    Workload("read-lower", "in blocks of 1 MiB", "big", "$LOOPS read big 1048576", limits={KERNEL: 1.3}),
    Workload(
        "read-upper",
        "in blocks of 1 MiB",
        "big",
        "$LOOPS read upper-big 1048576",
        prepare=_IN_UPPER,
        limits={KERNEL: 1.3},
    ),
    Workload("mmap-lower", "each word of a mapped file", "big", "$LOOPS mmap big", limits={KERNEL: 1.3}),
    Workload(
        "mmap-upper",
        "each word of a mapped file",
        "big",
        "$LOOPS mmap upper-big",
        prepare=_IN_UPPER,
        limits={KERNEL: 1.3},
    ),
    Workload(
        "random-lower", "4 KiB at random places", "big", "$LOOPS random big $READS", per="READS", limits={KERNEL: 1.3}
    ),
    Workload(
        "random-upper",
        "4 KiB at random places",
        "big",
        "$LOOPS random upper-big $READS",
        prepare=_IN_UPPER,
        per="READS",
        limits={KERNEL: 1.3},
    ),
    Workload("write", "a new file, in blocks of 1 MiB", "big", "$LOOPS write new 1048576 $BIG", limits={KERNEL: 1.3}),
    Workload(
        "write-4k",
        "a new file, in blocks of 4 KiB",
        "big",
        "$LOOPS write new 4096 $WRITES",
        per="WRITES",
        limits={KERNEL: 2.0, FUSE_OVERLAYFS: 0.5},
    ),
    Workload("copy-up", "one byte is written to a huge lower file", "huge", _COPY_UP, limits={KERNEL: 1.1}),
    Workload("copy-up-xfs", "the same on XFS, which clones", "huge", _COPY_UP, file_system="xfs", limits={KERNEL: 1.1}),
    Workload(
        "copy-up-btrfs", "the same on btrfs, which clones", "huge", _COPY_UP, file_system="btrfs", limits={KERNEL: 1.1}
    ),
)
