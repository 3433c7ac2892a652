"""All workloads, in the order in which they are run and shown. The modules are data: tuples of `Workload`s."""

from benchmark.workload import Workload
from benchmark.workloads import contents, files, growth, layers, programs, trees

USUAL: tuple[Workload, ...] = (
    *trees.WORKLOADS,
    *files.WORKLOADS,
    *contents.WORKLOADS,
    *programs.WORKLOADS,
    *layers.WORKLOADS,
)
GROWTH = growth.GROWTH
IDLE = growth.IDLE
ALL = (*USUAL, *GROWTH, *IDLE)
