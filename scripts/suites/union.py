"""A union for suites that run inside one: two lower branches and an upper one, on either side."""

from __future__ import annotations

import time
from collections.abc import Iterator

from suites.suite import Job, Outcome
from tests.harness.mounts import KernelMount, Layers, PyunionMount


class Union:
    """Mounted while it is a context. A daemon that complains or ends badly is a failure too: see complaint()."""

    def __init__(self, job: Job) -> None:
        lowers = [job.directory("lower1"), job.directory("lower2")]
        self.layers = Layers(lowers, job.directory("upper"), job.directory("work"))
        self.at = job.directory("union")
        self._complaint = ""
        self._mount = PyunionMount(self.at) if job.side == "pyunion" else KernelMount(self.at)

    def __enter__(self) -> Union:
        self._mount.start(self.layers, ["index=on"])
        return self

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + 5
        # Files of asynchronous requests are closed a moment after their process has ended.
        while (why := self._stop()) and self.at.is_mount() and time.monotonic() < deadline:
            time.sleep(0.25)
        if why:
            self._complaint = why
            self._mount.abandon()

    def _stop(self) -> str:
        try:
            self._mount.stop()
        except AssertionError as error:
            return str(error)
        return ""

    def complaint(self) -> Iterator[Outcome]:
        """What was wrong at an unmount, as one more failed test."""
        if self._complaint:
            yield "unmount", self._complaint
