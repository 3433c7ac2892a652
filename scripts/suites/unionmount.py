"""unionmount-testsuite: what a union must do with each system call, test by test.

Its modes are its own options: ov=3 rotates three layers in while it tests, samefs puts all layers on one file system,
verify looks at copies and inode numbers too, ts writes a slash after each name.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

from suites.suite import Job, Outcome, Suite, clear, environment


def _arguments(job: Job) -> list[str]:
    """The suite's options; their order matters to it."""
    first, *flags = job.mode.split("+")
    fuse = ["--fuse=pyunion"] if job.side == "pyunion" else []
    # samefs, where it is said, is the first flag
    return [f"--{first}", *fuse, *("--ts=1" if flag == "ts" else f"--{flag}" for flag in flags)]


def _run(job: Job) -> Iterator[Outcome]:
    base, lower, union = (job.directory(name) for name in ("base", "lower", "union"))
    env = environment(job, UNIONMOUNT_BASEDIR=base, UNIONMOUNT_MNTPOINT=union)
    if "samefs" not in job.mode.split("+"):
        env["UNIONMOUNT_LOWERDIR"] = str(lower)
    try:
        for point in (base, lower):
            subprocess.run(["mount", "-t", "tmpfs", "conformance", point], check=True)
        for test in sorted(path.stem for path in (job.checkout / "tests").glob("*.py")):
            if test != "rename-exdev":  # for unions that cannot rename directories of lower layers
                command = ["./run", *_arguments(job), test]
                yield f"{job.mode}/{test}", job.test(test, command, job.checkout, env=env, seconds=300)
                clear(union)  # the suite leaves it mounted
    finally:
        clear(job.base)


SUITE = Suite(
    name="unionmount",
    variable="UNIONMOUNT_DIR",
    url="https://github.com/amir73il/unionmount-testsuite",
    program="run",
    modes=("ov", "ov+samefs", "ov=3", "ov=3+samefs", "ov+verify", "ov=3+verify", "ov+samefs+verify", "ov+ts"),
    run=_run,
)
