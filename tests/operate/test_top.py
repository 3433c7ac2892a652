"""`pyunion top`: who does what, while somebody looks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pyunion.errors import ExitCode
from pyunion.fuse.layout import Op
from pyunion.fuse.recording import MOST_NAMED, Latencies, Recorder
from tests.harness.files import write
from tests.harness.union import Union
from tests.harness.warm import pyunion as run_pyunion
from tests.operate.conftest import connection_to, told

_LOAD = (
    "import os, sys\n"
    "place = sys.argv[1]\n"
    "print('begun', flush=True)\n"
    "while True:\n"
    "    with open(f'{place}/busy', 'w') as file:\n"
    "        file.write('x')\n"
    "    os.unlink(f'{place}/busy')\n"
)


@contextmanager
def _load(at: Path) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, "-c", _LOAD, str(at)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def test_under_load(pyunion: Union) -> None:
    (pyunion.low / "dir").mkdir()
    pyunion.mount("passthrough=off")
    with _load(pyunion.at / "dir") as pid:
        report = told("top", pyunion.at, "--once", "--interval", "1")
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    kinds = report["kinds"]
    assert {"create", "unlink", "write", "release"} <= kinds.keys()
    assert abs(kinds["create"]["requests"] - kinds["unlink"]["requests"]) <= 1
    for times in kinds.values():
        assert 0 < times["p50"] <= times["p90"] <= times["p99"] <= times["max"]
        assert times["mean"] <= times["max"]
    assert report["seconds"] >= 1
    assert report["paths"][0]["path"] == "/dir/busy"
    busiest = {(process["pid"], process["command"]) for process in report["processes"][:2]}
    assert (pid, name) in busiest
    assert busiest <= {(pid, name), (0, "(kernel)")}
    total = sum(times["requests"] for times in kinds.values())
    assert sum(process["requests"] for process in report["processes"]) == total


def test_each_report_begins_anew_and_nothing_is_missed(pyunion: Union) -> None:
    pyunion.mount()
    with connection_to(pyunion) as connection, ExitStack() as held:  # so that the kernel does not forget them meanwhile
        connection.ask("sample", most=0)
        for count in (3, 5):
            before = told("status", pyunion.at)["requests"]
            for number in range(count):
                path = pyunion.at / f"dir{number}-{count}"
                path.mkdir()
                held.callback(os.close, os.open(path, os.O_PATH))
            report = connection.ask("sample", most=100)
            after = told("status", pyunion.at)["requests"]
            assert report["kinds"]["mkdir"]["requests"] == count == after["mkdir"] - before.get("mkdir", 0)
            made = [told["path"] for told in report["paths"] if told["path"].startswith("/dir")]
            assert sorted(made) == [f"/dir{number}-{count}" for number in range(count)]
        assert connection.ask("sample", most=0)["kinds"].get("mkdir") is None


def test_requests_of_open_files_and_those_that_pyfuse3_does_not_have(pyunion: Union) -> None:
    write(pyunion.low / "dir/file", "x")
    pyunion.mount()
    with connection_to(pyunion) as connection:
        connection.ask("sample", most=0)
        with (pyunion.at / "dir/file").open("rb+") as file:
            file.truncate(8192)
        subprocess.run(["fallocate", "-l", "16384", pyunion.at / "dir/file"], check=True)
        subprocess.run(["lsattr", pyunion.at / "dir/file"], check=True, capture_output=True)
        report = connection.ask("sample", most=100)
    assert {"setattr", "fallocate", "ioctl"} <= report["kinds"].keys()
    assert "/dir/file" in [told["path"] for told in report["paths"]]
    assert {"fallocate", "lsattr"} <= {told["command"] for told in report["processes"]}


def test_without_the_extension(bare: Union) -> None:
    write(bare.low / "dir/file", "x")
    bare.mount()
    with connection_to(bare) as connection:
        connection.ask("sample", most=0)
        before = told("status", bare.at)["requests"]
        (bare.at / "new").mkdir()
        (bare.at / "dir/file").rename(bare.at / "new/name")
        os.link(bare.at / "new/name", bare.at / "link")
        with (bare.at / "link").open("rb+") as file:
            file.write(b"y")
            os.fsync(file.fileno())
        assert sorted(os.listdir(bare.at / "new")) == ["name"]
        os.statvfs(bare.at)
        report = connection.ask("sample", most=100)
        after = told("status", bare.at)["requests"]
    kinds = {kind: told["requests"] for kind, told in report["kinds"].items()}
    made = {"mkdir": 1, "rename": 1, "link": 1, "fsync": 1, "statfs": 1}
    assert made.items() <= kinds.items()
    assert {kind: after[kind] - before.get(kind, 0) for kind in made} == made
    assert {"/new", "/dir/file", "/link", "/new/name"} <= {told["path"] for told in report["paths"]}
    assert sum(told["requests"] for told in report["paths"]) == sum(kinds.values())
    with connection_to(bare) as connection:
        connection.ask("sample", most=0)
        (bare.at / "again").mkdir()
        assert connection.ask("sample", most=100)["kinds"]["mkdir"]["requests"] == 1


def test_the_screen(pyunion: Union) -> None:
    pyunion.mount()
    with _load(pyunion.at):
        done = run_pyunion("top", pyunion.at, "--once", "--interval", "0.5")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{pyunion.at}: ")
    first_cells = [line.split("│")[1].strip() for line in done.stdout.splitlines() if "│" in line]
    assert {"create", "unlink", "/busy"} <= set(first_cells)


def test_a_line_for_each_report(pyunion: Union) -> None:
    pyunion.mount()
    command = [sys.executable, "-m", "pyunion", "top", "--json", "--interval", "0.1", str(pyunion.at)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as top:
        assert top.stdout is not None
        reports: list[dict[str, Any]] = [json.loads(top.stdout.readline()) for _ in range(3)]
        top.terminate()
    assert all(report["seconds"] >= 0.1 for report in reports)


@pytest.mark.parametrize("interval", ["0", "1000", "nan", "often"])
def test_intervals_that_are_none(pyunion: Union, interval: str) -> None:
    pyunion.mount()
    assert run_pyunion("top", pyunion.at, "--interval", interval).returncode == ExitCode.USAGE


def test_quantiles_are_right_to_an_eighth() -> None:
    latencies = Latencies()
    for ns in range(1, 100_001):
        latencies.add(ns)
    for part in (0.01, 0.5, 0.9, 0.99):
        assert part * 100_000 <= latencies.quantile(part) <= part * 100_000 * 1.125
    assert latencies.quantile(1.0) == 100_000


def test_a_recorder_does_not_grow() -> None:
    recorder = Recorder()
    for number in range(3 * MOST_NAMED):
        recorder.add(Op.LOOKUP, b"/%d" % number, (number, b"sh"), 1000)
    report = recorder.report(3 * MOST_NAMED)
    assert len(report["paths"]) == len(report["processes"]) == MOST_NAMED + 1
    assert report["paths"][0] == {"path": "(others)", "requests": 2 * MOST_NAMED}
    assert recorder.report(10)["paths"] == []
