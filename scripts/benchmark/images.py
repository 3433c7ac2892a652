"""Work on images by pyunion and by podman: the same archive unpacked, the same upper branch committed.

Nothing is mounted for pyunion; what is timed is a command from its start to its end. podman has a storage of its own,
on the kernel's overlayfs, in the directory of the run. CPU seconds and peak memory are of the command and all that it
has started.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmark.materials import Ground, Material, shell
from benchmark.runner import FAILURES, Outcome, Results, complaint, in_turns
from benchmark.systems import System
from benchmark.workload import PYUNION, Workload

PODMAN = "podman"
SYSTEMS = (System(PODMAN, "podman"), System(PYUNION, shlex.quote(sys.executable)))
_AS_FAST = {PODMAN: 1.0}
_PATIENCE = 3600  # seconds for one command

# An image and a container of a material: archives of the one, and the other's upper branch with all of it as $UPPER.
_PREPARE = """
tar cf tree.tar $LOWERS
mkdir -p empty && tar cf empty.tar empty
$PODMAN import --quiet tree.tar image
$PODMAN save --quiet --format oci-archive --output gzip.tar image
$PODMAN save --quiet --format docker-archive --output plain.tar image
$PODMAN rmi --force image && rm tree.tar
$PODMAN import --quiet empty.tar small
$PODMAN create --name container small /none
cp --archive $LOWERS "$($PODMAN mount container)"
$PODMAN umount container
"""
_UPPER = "{{.GraphDriver.Data.UpperDir}}"


class Job(NamedTuple):
    """What is done by each of the two: scripts for `sh -e` in an empty directory."""

    workload: Workload
    by: dict[str, str]


def _import(name: str, what: str, material: str, archive: str) -> Job:
    by = {
        PODMAN: f"$PODMAN load --quiet --input $MATERIAL/{archive}.tar",
        PYUNION: f"$PYUNION import $MATERIAL/{archive}.tar store",
    }
    return Job(Workload(name, what, material, by[PYUNION], limits=_AS_FAST), by)


def _commit(name: str, what: str, material: str, words: str) -> Job:
    by = {PODMAN: "$PODMAN commit --quiet container committed", PYUNION: f"$PYUNION commit $UPPER {words}"}
    return Job(Workload(name, what, material, by[PYUNION], limits=_AS_FAST), by)


JOBS = (
    _import("import-gzip", "an OCI archive of a tree, by `podman load`", "tree", "gzip"),
    _import("import-plain", "an archive of `docker save`", "tree", "plain"),
    _import("import-huge", "an OCI archive with one large file", "huge", "gzip"),
    _commit("commit-gzip", "a tree onto an OCI image, by `podman commit`", "tree", "--oci-layout image"),
    _commit("commit-plain", "the same, not compressed", "tree", "--oci-layout image --compression none"),
    _commit("commit-directory", "the same, as a directory", "tree", "layer"),
    _commit("commit-huge", "one large file onto an OCI image", "huge", "--oci-layout image"),
)


class Shelf:
    """The archives and the containers of all materials of a run. As a context it takes the storage of podman away."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._known: dict[str, dict[str, str | Path]] = {}

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *_: object) -> None:
        for name in self._known:
            subprocess.run(["umount", self._storage(name) / "root/overlay"], capture_output=True)

    def variables(self, name: str) -> dict[str, str | Path]:
        """Of the scripts, for a material. Raises as Ground.material() and subprocess.CalledProcessError."""
        if name not in self._known:
            material = self._ground.material(name)
            self._known[name] = self._made(name, material)
        return self._known[name]

    def _storage(self, name: str) -> Path:
        return self._ground.base / f"podman-{name}"

    def _made(self, name: str, material: Material) -> dict[str, str | Path]:
        home = self._storage(name)
        places = f"--root {home}/root --runroot {home}/run --tmpdir {home}/tmp"
        podman = f"podman {places} --storage-driver overlay --cgroup-manager cgroupfs --events-backend none"
        shell(_PREPARE, material.directory, PODMAN=podman, LOWERS=" ".join(material.lowers))
        words = [*podman.split(), "inspect", "--format", _UPPER, "container"]
        said = subprocess.run(words, check=True, capture_output=True, text=True)
        program = f"{shlex.quote(sys.executable)} -I -m pyunion"
        upper = Path(said.stdout.strip())
        return {"PODMAN": podman, "PYUNION": program, "MATERIAL": material.directory, "UPPER": upper}


def _run(shelf: Shelf, ground: Ground, job: Job, system: str, outcome: Outcome) -> None:
    """One command, with all that it reads in the page cache and nothing waiting to be written."""
    variables = {name: str(value) for name, value in shelf.variables(job.workload.material).items()}
    directory = ground.base / "job"
    directory.mkdir()
    try:
        shell('cat $MATERIAL/*.tar >/dev/null; tar cf - -C "$UPPER" . | cat >/dev/null; sync', directory, **variables)
        began = time.perf_counter()
        command = ["sh", "-ec", job.by[system]]
        with (ground.base / "said").open("w+") as said:
            process = subprocess.Popen(
                command,
                cwd=directory,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
            )
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            seconds = time.perf_counter() - began
            if process.returncode:
                said.seek(0)
                raise subprocess.CalledProcessError(process.returncode, command, None, said.read())
        outcome.seconds.append(seconds)
        outcome.cpu.append(used.ru_utime + used.ru_stime)
        outcome.peak.append(used.ru_maxrss)
    except FAILURES as error:
        outcome.failure = complaint(error)
        print(f"  {system}: {outcome.failure}", file=sys.stderr, flush=True)
    finally:
        shell("rm -rf $JOB; $PODMAN rmi --force image committed || true", ground.base, JOB=directory, **variables)


def run_all(ground: Ground, jobs: Sequence[Job], rounds: int) -> Results:
    results: Results = {job.workload.name: {system.name: Outcome() for system in SYSTEMS} for job in jobs}
    with Shelf(ground) as shelf:
        for number in range(rounds):
            for job in jobs:
                print(f"round {number + 1}: {job.workload.name}", file=sys.stderr, flush=True)
                for system in in_turns(SYSTEMS, number):
                    _run(shelf, ground, job, system.name, results[job.workload.name][system.name])
    return results
