"""unionmount-testsuite: what a union must do with each system call, test by test.

Its modes are its own options: ov=3 rotates three layers in while it tests, samefs puts all layers on one file system,
verify looks at copies and inode numbers too, ts writes a slash after each name.
"""

from __future__ import annotations

import subprocess

from suites.suite import Job, Outcomes, Suite, clear, environment, last_line, run

PATIENCE = 300  # seconds for one test
# For unions that cannot rename directories of lower layers; the suite leaves it out for others.
NOT_OURS = {"rename-exdev"}


def _arguments(job: Job) -> list[str]:
    """The suite's options; their order matters to it."""
    first, *flags = job.mode.split("+")
    options = [f"--{first}"]
    if job.side == "pyunion":
        options.append("--fuse=pyunion")
    if "samefs" in flags:
        options.append("--samefs")
    return options + [{"ts": "--ts=1"}.get(flag, f"--{flag}") for flag in flags if flag != "samefs"]


def _run(job: Job) -> Outcomes:
    base, lower, union = (job.directory(name) for name in ("base", "lower", "union"))
    env = environment(job, UNIONMOUNT_BASEDIR=base, UNIONMOUNT_MNTPOINT=union)
    if "samefs" not in job.mode.split("+"):
        env["UNIONMOUNT_LOWERDIR"] = str(lower)
    outcomes = {}
    try:
        for point in (base, lower):
            subprocess.run(["mount", "-t", "tmpfs", "conformance", point], check=True)
        for test in sorted(path.stem for path in (job.checkout / "tests").glob("*.py")):
            if test in NOT_OURS or (job.tests and test not in job.tests):
                continue
            log = job.directory("logs") / test
            code = run(["./run", *_arguments(job), test], log, PATIENCE, job.checkout, env)
            clear(union)  # the suite leaves it mounted
            why = "" if code == 0 else "no end" if code is None else last_line(log)
            outcomes[f"{job.mode}/{test}"] = why
            if why:
                job.say(test, why)
    finally:
        for point in (union, base, lower):
            clear(point)
    return outcomes


SUITE = Suite(
    name="unionmount",
    variable="UNIONMOUNT_DIR",
    url="https://github.com/amir73il/unionmount-testsuite",
    program="run",
    modes=("ov", "ov+samefs", "ov=3", "ov=3+samefs", "ov+verify", "ov=3+verify", "ov+samefs+verify", "ov+ts"),
    run=_run,
)
