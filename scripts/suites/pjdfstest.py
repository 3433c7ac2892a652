"""pjdfstest: what POSIX says of each system call, thousands of small tests, run inside a union.

In the mode "caches dropped" the kernel forgets unused entries and inodes all the time, and asks for them again.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path

from suites.suite import Job, Outcomes, Suite, run
from suites.union import Union

PATIENCE = 300  # seconds for one file
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


def _outcomes(name: str, output: str) -> Outcomes:
    """What one file says of its tests, in the Test Anything Protocol."""
    found: Outcomes = {}
    plan = re.search(r"^1\.\.(\d+)", output, re.MULTILINE)
    for failed, number, text in re.findall(r"^(not )?ok (\d+)(.*)", output, re.MULTILINE):
        # TODO: the suite itself knows that Linux differs there
        is_failure = failed and "# TODO" not in text
        found[f"{name}:{number}"] = (text.strip(" -") or "not ok") if is_failure else ""
    if not plan:
        return {**found, name: "it says no plan"}
    for number in range(1, int(plan[1]) + 1):
        found.setdefault(f"{name}:{number}", "it did not come to that")
    return found


def _run(job: Job) -> Outcomes:
    outcomes: Outcomes = {}
    union = Union(job)
    for lower in union.layers.lowers:
        (lower / "t").mkdir()
    with union, _dropping_caches() if job.mode == DROPPING else contextlib.nullcontext():
        for path in sorted((job.checkout / "tests").glob("*/**/*.t")):
            name = str(path.relative_to(job.checkout / "tests"))
            log = job.directory("logs") / name.replace("/", "_")
            run(["sh", path], log, PATIENCE, union.at / "t")
            for test, why in _outcomes(name, log.read_text(errors="replace")).items():
                outcomes[test] = why
                if why:
                    job.say(test, why)
    return outcomes | union.complaint()


SUITE = Suite(
    name="pjdfstest",
    variable="PJDFSTEST_DIR",
    url="https://github.com/pjd/pjdfstest",
    program="pjdfstest",
    modes=("plain", DROPPING),
    run=_run,
)
