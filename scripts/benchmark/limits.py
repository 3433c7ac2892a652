"""Whether pyunion is fast enough: its ratios to others, held against the limits.

A workload's own limits stand beside it; those for all of them are here.
"""

from __future__ import annotations

from collections.abc import Iterable

from benchmark.report import ratio
from benchmark.runner import Results
from benchmark.workload import FUSE_OVERLAYFS, KERNEL, PYUNION, Workload

NEEDED = (KERNEL, FUSE_OVERLAYFS, PYUNION)
# Of every workload, but for a few that may be somewhat slower.
_USUAL = {FUSE_OVERLAYFS: 1.0}
_EXCUSED_UP_TO = 1.3
_MOST_EXCUSED = 3


def broken(results: Results, workloads: Iterable[Workload]) -> list[str]:
    """A sentence for each limit that pyunion does not keep. What another system cannot do sets no limit."""
    found: list[tuple[str, bool]] = []  # the sentence; whether it is one of those few
    for workload in workloads:
        outcomes = results[workload.name]
        if outcomes[PYUNION].failure:
            found.append((f"{workload.name}: pyunion fails: {outcomes[PYUNION].failure}", False))
        for other, limit in {**_USUAL, **workload.limits}.items():
            value = ratio(outcomes, PYUNION, other)
            if value is not None and limit is not None and value > limit:
                line = f"{workload.name}: {value:.2f} of the time of {other}, may be {limit}"
                found.append((line, other not in workload.limits and value <= _EXCUSED_UP_TO))
        median = outcomes[PYUNION].median
        if median is not None and workload.within_s is not None and median > workload.within_s:
            found.append((f"{workload.name}: {median:.2f} s, may be {workload.within_s}", False))
    excuses = sum(is_excused for _, is_excused in found) <= _MOST_EXCUSED
    return [line for line, is_excused in found if not (is_excused and excuses)]
