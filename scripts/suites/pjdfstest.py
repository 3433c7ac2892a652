"""pjdfstest: what POSIX says of each system call, thousands of small tests, run inside a union.

In the mode "caches dropped" the kernel forgets unused entries and inodes all the time, and asks for them again.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from suites.suite import Job, Outcome, Suite
from suites.union import Union

DROPPING = "caches dropped"


@contextlib.contextmanager
def _dropping_caches() -> Iterator[None]:
    stop = threading.Event()

    def drop() -> None:
        while not stop.wait(0.5):
            Path("/proc/sys/vm/drop_caches").write_text("2")

    thread = threading.Thread(target=drop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _outcomes(name: str, output: str) -> Iterator[Outcome]:
    """What one file says of its tests, in the Test Anything Protocol."""
    plan = re.search(r"^1\.\.(\d+)", output, re.MULTILINE)
    if not plan:
        yield name, "it says no plan"
    left = set(range(1, int(plan[1]) + 1 if plan else 1))
    for failed, number, text in re.findall(r"^(not )?ok (\d+)(.*)", output, re.MULTILINE):
        left.discard(int(number))
        # TODO: the suite itself knows that Linux differs there
        is_failure = failed and "# TODO" not in text
        yield f"{name}:{number}", (text.strip(" -") or "not ok") if is_failure else ""
    yield from ((f"{name}:{number}", "it did not come to that") for number in sorted(left))


def _run(job: Job) -> Iterator[Outcome]:
    union = Union(job)
    for lower in union.layers.lowers:
        (lower / "t").mkdir()
    with union, _dropping_caches() if job.mode == DROPPING else contextlib.nullcontext():
        for path in sorted((job.checkout / "tests").glob("*/**/*.t")):
            name = str(path.relative_to(job.checkout / "tests"))
            job.test(name, ["sh", path], union.at / "t", seconds=300)
            yield from _outcomes(name, job.log(name).read_text(errors="replace"))
    yield from union.complaint()


SUITE = Suite(
    name="pjdfstest",
    variable="PJDFSTEST_DIR",
    url="https://github.com/pjd/pjdfstest",
    program="pjdfstest",
    modes=("plain", DROPPING),
    run=_run,
)
