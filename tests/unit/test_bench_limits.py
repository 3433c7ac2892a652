"""scripts/bench --check: which ratios are too large."""

from __future__ import annotations

import pytest

from benchmark import limits
from benchmark.runner import Outcome, Results
from benchmark.workload import FUSE_OVERLAYFS, KERNEL, PYUNION, Workload

PLAIN = [Workload(f"plain{number}", "", "tree", "true") for number in range(4)]


def results(workloads: list[Workload], pyunion: float) -> Results:
    """The others take a second each."""
    return {
        each.name: {KERNEL: Outcome([1.0]), FUSE_OVERLAYFS: Outcome([1.0]), PYUNION: Outcome([pyunion])}
        for each in workloads
    }


@pytest.mark.parametrize(
    ("number", "ratio", "broken"),
    [(4, 1.0, 0), (3, 1.3, 0), (4, 1.01, 4), (1, 1.31, 1)],
    ids=["as fast", "three may be slower", "four may not", "nor one by more"],
)
def test_a_few_workloads_may_be_somewhat_slower_than_fuse_overlayfs(number: int, ratio: float, broken: int) -> None:
    chosen = PLAIN[:number]
    assert len(limits.broken(results(chosen, ratio), chosen)) == broken


@pytest.mark.parametrize(("ratio", "broken"), [(0.5, 0), (0.51, 1)])
def test_a_limit_of_its_own_has_no_excuse(ratio: float, broken: int) -> None:
    chosen = [Workload("own", "", "tree", "true", limits={FUSE_OVERLAYFS: 0.5})]
    assert len(limits.broken(results(chosen, ratio), chosen)) == broken


def test_limits_against_the_kernel_come_on_top() -> None:
    chosen = [Workload("both", "", "tree", "true", limits={KERNEL: 1.3})]
    assert limits.broken(results(chosen, 1.0), chosen) == []
    assert len(limits.broken(results(chosen, 2.0), chosen)) == 2


def test_a_workload_may_be_held_against_nobody() -> None:
    chosen = [Workload("alone", "", "tree", "true", limits={FUSE_OVERLAYFS: None})]
    assert limits.broken(results(chosen, 5.0), chosen) == []


@pytest.mark.parametrize(("seconds", "broken"), [(0.4, 0), (0.41, 1)])
def test_a_time_may_be_its_limit(seconds: float, broken: int) -> None:
    chosen = [Workload("timed", "", "tree", "true", limits={FUSE_OVERLAYFS: None}, within_s=0.4)]
    assert len(limits.broken(results(chosen, seconds), chosen)) == broken


def test_what_fails_is_no_success() -> None:
    chosen = PLAIN[:1]
    made = results(chosen, 0.1)
    made["plain0"][PYUNION].failure = "mount: no"
    assert "mount: no" in limits.broken(made, chosen)[0]


def test_what_another_system_cannot_do_sets_no_limit() -> None:
    chosen = PLAIN[:1]
    made = results(chosen, 5.0)
    made["plain0"][FUSE_OVERLAYFS].failure = "mount: no"
    assert limits.broken(made, chosen) == []
