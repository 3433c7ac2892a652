"""scripts/bench: real mounts, real times; what it writes is whole and can be read."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.harness.mounts import REPOSITORY

BUILT_IN = {"kernel", "fuse-overlayfs", "unionfs-fuse", "pyunion"}
MINUTES = 5  # a machine may be busy

pytestmark = pytest.mark.usefixtures("_can_mount")


def bench(scratch: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(REPOSITORY / "scripts/bench"), "--quick", "--rounds", "2", *arguments]
    env = {**os.environ, "TMPDIR": str(scratch)}
    return subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=60 * MINUTES)


def left_out(done: subprocess.CompletedProcess[str]) -> set[str]:
    """What the distribution does not have; the run says so."""
    return set(re.findall(r"^(\S+) is not installed and is left out$", done.stderr, re.MULTILINE))


def test_every_system_runs_every_workload(scratch: Path) -> None:
    other = "other=scripts/pyunion mount --lower {lower} --upper {upper} --work {work} {mnt}"
    names = ["walk-cold", "append", "copy-up-xfs", "500-layers-mount"]
    files = ("--json", str(scratch / "out.json"), "--svg", str(scratch / "out.svg"))
    done = bench(scratch, "--only", ",".join(names), "--system", other, *files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert left_out(done) <= {"unionfs-fuse"}
    systems = (BUILT_IN | {"other"}) - left_out(done)
    results = json.loads((scratch / "out.json").read_text())["results"]
    assert list(results) == names
    for outcomes in results.values():
        assert outcomes.keys() == systems
        for system, outcome in outcomes.items():
            assert outcome["failure"] == ""
            assert len(outcome["seconds"]) == 2
            assert min(outcome["seconds"]) > 0
            assert len(outcome["peak"]) == (0 if system == "kernel" else 2)
    chart = ElementTree.parse(scratch / "out.svg").getroot()
    titles = [title.text for title in chart.iter("{http://www.w3.org/2000/svg}title")]
    for name in names:
        assert sum(str(title).startswith(f"{name}, ") for title in titles) == len(systems) - 1
    assert sorted(os.listdir(scratch)) == ["out.json", "out.svg"]


def test_a_mount_command_that_fails_costs_its_own_cells_only(scratch: Path) -> None:
    other = "other=sh -c 'echo no such luck; exit 3' {lower} {upper} {mnt}"
    done = bench(scratch, "--only", "create-unlink", "--systems", "pyunion,kernel", "--system", other)
    assert done.returncode == 0, done.stderr
    assert "create-unlink, other: no such luck" in done.stdout


def test_a_pyunion_that_fails_ends_with_1(scratch: Path) -> None:
    """A run without results must not look like one without slow workloads."""
    other = "pyunion=false {lower} {upper} {mnt}"
    systems = ("--systems", "kernel,fuse-overlayfs", "--system", other)
    assert bench(scratch, "--only", "create-unlink", *systems).returncode == 1
    assert bench(scratch, "--only", "create-unlink", *systems, "--check").returncode == 1


def test_requests_are_counted_for_each_operation(scratch: Path) -> None:
    done = bench(scratch, "--requests", "create-unlink")
    assert done.returncode == 0, done.stderr
    if "does not tell of FUSE requests" not in done.stdout:  # Linux before 6.14
        assert re.search(r"^CREATE +500 +1\.00$", done.stdout, re.MULTILINE)
        assert re.search(r"^UNLINK +500 +1\.00$", done.stdout, re.MULTILINE)
    assert re.search(r" 500 +unlinkat$", done.stdout, re.MULTILINE)


def test_a_profile_shows_the_daemons_functions(scratch: Path) -> None:
    done = bench(scratch, "--profile", "create-unlink")
    assert done.returncode == 0, done.stderr
    calls = re.search(r"^ +(\d+) .*\{built-in method posix\.open\}$", done.stdout, re.MULTILINE)
    assert calls
    assert int(calls[1]) >= 500  # at least one for each new file


@pytest.mark.parametrize(
    "arguments",
    [
        ("--only", "no-such-workload"),
        ("--systems", "no-such-system"),
        ("--system", "other"),
        ("--system", "other="),
        ("--system", "other=mount {lower} {mnt}"),
        ("--system", "other=mount {lower} {upper} {mnt} {more}"),
        ("--system", "other=no-such-command {lower} {upper} {mnt}"),
        ("--check", "--systems", "pyunion"),
        ("--svg", "out.svg", "--systems", "pyunion"),
    ],
)
def test_what_cannot_be_run_is_refused_before_the_run(scratch: Path, arguments: tuple[str, ...]) -> None:
    done = bench(scratch, *arguments)
    assert done.returncode == 2, done.stderr
    assert "error: " in done.stderr
