"""Workloads on unions of the same branches, side by side: rounds are interleaved, medians and ratios are printed.

The machine's speed drops out of the ratios; absolute times say little. Run as root by scripts/bench.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
FILES = 500  # how many lower files are changed one by one
BIG_MIB = 256


class Place:
    """One union's branches and mount point; the lower branch is shared, read-only, by all."""

    def __init__(self, base: Path, kind: str, source: Path) -> None:
        self.kind = kind
        self.lower = source
        self.upper, self.work, self.at = base / "upper", base / "work", base / "at"
        for path in (self.upper, self.work, self.at):
            path.mkdir(parents=True)

    def mount(self) -> None:
        subprocess.run(COMMANDS[self.kind](self), check=True, stderr=subprocess.DEVNULL)

    def unmount(self) -> None:
        subprocess.run(["umount", self.at], check=True)


def _overlay_options(place: Place) -> str:
    return f"lowerdir={place.lower},upperdir={place.upper},workdir={place.work}"


COMMANDS: dict[str, Callable[[Place], list[str | Path]]] = {
    "kernel": lambda at: ["mount", "-t", "overlay", "overlay", "-o", _overlay_options(at), at.at],
    "fuse-overlayfs": lambda at: ["fuse-overlayfs", "-o", _overlay_options(at), at.at],
    "pyunion": lambda at: [
        *(sys.executable, "-m", "pyunion", "mount", "--lower", at.lower, "--upper", at.upper, "--work", at.work),
        at.at,
    ],
}


def shell(script: str) -> Callable[[Place], None]:
    """A workload that is a shell script, run in the union; $ARCHIVE is a tar file of many small files."""

    def run(place: Place) -> None:
        subprocess.run(["sh", "-ec", script], cwd=place.at, check=True, stdout=subprocess.DEVNULL)

    return run


def first_files(place: Place) -> list[Path]:
    found: list[Path] = []
    for directory, _, names in os.walk(place.at / "tree"):
        found += [path for name in names if not (path := Path(directory, name)).is_symlink()]
        if len(found) >= 2 * FILES:
            break
    return found


def append_to_lower_files(place: Place) -> None:
    for path in first_files(place)[:FILES]:
        with path.open("ab") as file:
            file.write(b"x")


def chmod_lower_files(place: Place) -> None:
    for path in first_files(place)[FILES : 2 * FILES]:
        path.chmod(0o600)


def create_and_unlink(place: Place) -> None:
    for number in range(1000):
        path = place.at / f"new{number}"
        path.touch()
        path.unlink()


# In this order, each on what those before have left.
WORKLOADS: dict[str, Callable[[Place], None]] = {
    "mount": Place.mount,
    "walk, cold": shell("find tree -printf %s"),
    "walk, warm": shell("find tree -printf %s"),
    "read the tree, cold": shell("tar cf - tree | cat"),
    "read the tree, warm": shell("tar cf - tree | cat"),
    "append to lower files": append_to_lower_files,
    "chmod of lower files": chmod_lower_files,
    "create and unlink": create_and_unlink,
    "untar": shell("mkdir new && tar xf $ARCHIVE -C new"),
    "rm -rf of an upper tree": shell("rm -rf new"),
    "rm -rf of a lower tree": shell("rm -rf tree"),
    "sequential write": shell(f"dd if=/dev/zero of=big bs=1M count={BIG_MIB} status=none"),
    "sequential read": shell("dd if=big of=/dev/null bs=1M status=none"),
    "4 KiB writes": shell("dd if=/dev/zero of=small bs=4k count=20000 status=none"),
    "unmount": Place.unmount,
}


def round_of(kind: str, base: Path, source: Path) -> dict[str, float]:
    """Seconds for each workload."""
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("2")
    place = Place(base, kind, source)
    times = {}
    for name, workload in WORKLOADS.items():
        began = time.perf_counter()
        workload(place)
        times[name] = time.perf_counter() - began
    shutil.rmtree(base)
    return times


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """Median milliseconds, and how pyunion compares."""
    kinds = list(results)
    lines = [f"{'':26}" + "".join(f"{kind:>16}" for kind in kinds) + f"{'to kernel':>11}{'to fuse-o.':>11}"]
    for name in WORKLOADS:
        medians = {kind: statistics.median(round[name] for round in rounds) for kind, rounds in results.items()}
        ratios = [medians["pyunion"] / medians[kind] for kind in ("kernel", "fuse-overlayfs")]
        cells = "".join(f"{1000 * medians[kind]:16.1f}" for kind in kinds)
        lines.append(f"{name:26}{cells}{ratios[0]:11.2f}{ratios[1]:11.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two rounds: under two minutes")
    parser.add_argument("--tree", type=Path, default=Path("/usr/include"), help="what the lower branch holds")
    parser.add_argument("--json", type=Path, help="write all times there")
    arguments = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {kind: [] for kind in COMMANDS}
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    with tempfile.TemporaryDirectory(prefix="pyunion-bench-") as name:
        base = Path(name)
        source = base / "lower"
        shutil.copytree(arguments.tree, source / "tree", symlinks=True)
        os.environ["ARCHIVE"] = str(base / "tree.tar")
        subprocess.run(["tar", "cf", base / "tree.tar", "-C", source, "tree"], check=True)
        for number in range(2 if arguments.quick else arguments.rounds):
            for kind, rounds in results.items():
                rounds.append(round_of(kind, base / f"{kind}{number}", source))
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
