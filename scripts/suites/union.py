"""A union for suites that run inside one: two lower branches and an upper one, on either side."""

from __future__ import annotations

from suites.suite import Job, Outcomes
from tests.harness.mounts import KernelMount, Layers, PyunionMount


class Union:
    """Mounted while it is a context. A daemon that complains or ends badly is a failure too: see complaint()."""

    def __init__(self, job: Job) -> None:
        self.layers = Layers(
            [job.directory("lower1"), job.directory("lower2")], job.directory("upper"), job.directory("work")
        )
        self.at = job.directory("union")
        self._side = job.side
        self._complaint = ""
        self._mount = PyunionMount(self.at) if job.side == "pyunion" else KernelMount(self.at)

    def __enter__(self) -> Union:
        self._mount.start(self.layers, ["index=on"])
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._mount.stop()
        except AssertionError as error:
            self._complaint = str(error)
            self._mount.abandon()

    def complaint(self) -> Outcomes:
        """What was wrong at an unmount, as one more failed test."""
        return {"unmount": self._complaint} if self._complaint else {}
