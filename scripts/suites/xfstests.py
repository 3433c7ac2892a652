"""xfstests: its generic tests, the group "quick" unless single ones are asked for.

pyunion is run as what it is, a FUSE file system; the kernel's overlayfs as the suite itself runs it. Branches of both
are on two ext4 images. Tests that do not apply to a side are not counted there.
"""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from suites.suite import Job, Outcome, Suite, clear, environment

DEVICES = ("conformance-test", "conformance-scratch")
BRANCHES = ("lower", "upper", "work")  # suites/stand_in.py finds them by these names


@contextlib.contextmanager
def _devices(job: Job) -> Iterator[dict[str, str]]:
    """Two loop devices with an empty ext4 each, by name."""
    found: dict[str, str] = {}
    try:
        for name in DEVICES:
            image = job.base / f"{name}.img"
            subprocess.run(["truncate", "-s", "2G", image], check=True)
            subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
            found[name] = subprocess.check_output(["losetup", "--find", "--show", image], text=True).strip()
        yield found
    finally:
        clear(job.base)
        for device in found.values():
            subprocess.run(["losetup", "--detach", device], check=True)


def _layers(job: Job, devices: dict[str, str]) -> Path:
    """Where pyunion finds the branches of the suite's "devices", which are only names to it."""
    layers = job.directory("layers")
    for name, device in devices.items():
        subprocess.run(["mount", device, job.directory(f"layers/{name}")], check=True)
        for branch in BRANCHES:
            job.directory(f"layers/{name}/{branch}")
    return layers


def _configuration(job: Job, devices: dict[str, str]) -> dict[str, str]:
    places = {"TEST_DIR": "mnt/test", "SCRATCH_MNT": "mnt/scratch", "RESULT_BASE": "results"}
    common = {variable: str(job.directory(name)) for variable, name in places.items()}
    if job.side == "kernel":
        test, scratch = devices.values()
        return {**common, "FSTYP": "ext4", "TEST_DEV": test, "SCRATCH_DEV": scratch}
    return {
        **common,
        "FSTYP": "fuse",
        "FUSE_SUBTYP": ".pyunion",
        "TEST_DEV": DEVICES[0],
        "SCRATCH_DEV": DEVICES[1],
        "MOUNT_OPTIONS": "-orw",
        "TEST_FS_MOUNT_OPTS": "-orw",
    }


def _stand_in_df(job: Job) -> None:
    """The suite wants df to say "fuse", without the subtype that the kernel shows."""
    path = job.directory("bin") / "df"
    path.write_text("#!/bin/sh\n/bin/df \"$@\" | sed 's/ fuse\\.pyunion / fuse /'\n")
    path.chmod(0o755)


def _why(case: ElementTree.Element) -> str:
    """The suite's own words and the first line that should not be there; empty if a test has not failed."""
    failure = case.find("failure")
    if failure is None:
        return ""
    surplus = re.search(r"^\+(?!\+\+)(.*)", case.findtext("system-err", ""), re.MULTILINE)
    said = failure.get("message", "failed").lstrip("- ").partition(" (see ")[0]
    return f"{said}: {surplus[1]}" if surplus else said


def _run(job: Job) -> Iterator[Outcome]:
    flags = ["-overlay"] if job.side == "kernel" else []
    command = ["./check", *flags, "-R", "xunit", *(job.tests or ["-g", "generic/quick", "-x", "dangerous"])]
    report = job.directory("results") / "result.xml"
    with _devices(job) as devices:
        settings = _configuration(job, devices).items()
        file = job.base / "local.config"
        file.write_text("".join(f'export {name}="{value}"\n' for name, value in settings))
        env = environment(job, HOST_OPTIONS=file, REPORT_DIR=report.parent)
        if job.side == "pyunion":
            env["CONFORMANCE_LAYERS"] = str(_layers(job, devices))
            _stand_in_df(job)
        # SIGINT has it write a report of what it came to.
        why = job.test("check", command, job.checkout, env=env, seconds=60 * job.minutes, stop_by=signal.SIGINT)
    if why.startswith("stopped"):
        print(f"  {why}", file=sys.stderr)
    if not report.exists():
        yield "check", why
        return
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        if case.find("skipped") is None:
            yield case.attrib["name"], _why(case)


SUITE = Suite(
    name="xfstests",
    variable="XFSTESTS_DIR",
    url="https://git.kernel.org/pub/scm/fs/xfs/xfstests-dev.git",
    program="ltp/fsstress",
    modes=("generic",),
    run=_run,
)
