"""Many lower branches."""

from benchmark.workload import FUSE_OVERLAYFS, State, Workload

WORKLOADS = (
    Workload(
        "100-layers-hits",
        "each file of 100 layers is asked for once",
        "100-layers",
        "$LOOPS stat $MATERIAL/files 1",
        State.COLD,
        per="ENTRIES",
    ),
    Workload(
        "100-layers-misses",
        "as many names that are in none of 100 layers",
        "100-layers",
        "$LOOPS absent $MATERIAL/absent 1",
        State.COLD,
        per="ENTRIES",
    ),
    Workload(
        "500-layers-mount", "until the mount answers", "500-layers", "", limits={FUSE_OVERLAYFS: None}, within_s=1.0
    ),
)
