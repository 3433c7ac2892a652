"""All workloads, in the order in which they are run and shown. The modules are data: a tuple of `Workload`s each."""

from benchmark.workload import Workload
from benchmark.workloads import contents, files, layers, programs, trees

ALL: tuple[Workload, ...] = (
    *trees.WORKLOADS,
    *files.WORKLOADS,
    *contents.WORKLOADS,
    *programs.WORKLOADS,
    *layers.WORKLOADS,
)
