"""What grows with the tree and with the number of layers; and what is spent when nothing is asked."""

from benchmark.workload import Workload

GROWTH = (
    *(
        Workload(
            f"walk-{entries}",
            f"find with sizes on {entries} files; and the memory after it",
            f"{entries}-files",
            "find d -printf %s",
            per="ENTRIES",
            keeps_memory=True,
        )
        for entries in (1_000, 10_000, 100_000)
    ),
    *(
        Workload(
            f"lookup-{layers}-layers",
            f"1,000 files of the lowest of {layers} layers, each asked for once",
            f"{layers}-deep",
            "$LOOPS stat $MATERIAL/files 1",
            per="ENTRIES",
        )
        for layers in (1, 10, 100, 500)
    ),
)
IDLE = (Workload("idle", "nothing, for 10 seconds: see the CPU seconds", "tree", "sleep 10"),)
