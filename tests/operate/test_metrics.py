"""`--metrics`: what Prometheus scrapes is what the status says, and a scrape hurts nobody."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from pyunion.errors import ExitCode
from tests.harness.files import append, tree, write
from tests.harness.warm import pyunion as run_pyunion
from tests.operate.conftest import told


@contextmanager
def _mounted(base: Path, host: str = "127.0.0.1") -> Iterator[tuple[Path, str]]:
    """A mount point and the address of its metrics."""
    for name in ("lower", "upper", "work", "mnt"):
        (base / name).mkdir(exist_ok=True)
    branches = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
    done = run_pyunion("mount", "--metrics", f"{host}:0", "-o", branches, base / "mnt")
    assert done.returncode == 0, done.stderr
    try:
        yield base / "mnt", told("status", base / "mnt")["metrics"]
    finally:
        assert run_pyunion("umount", base / "mnt").returncode == 0


def _scrape(address: str) -> dict[str, Metric]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{address}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {metric.name: metric for metric in text_string_to_metric_families(text)}


def _values(metric: Metric, label: str) -> dict[str, float]:
    return {sample.labels[label]: sample.value for sample in metric.samples if sample.name.endswith("_total")}


@pytest.mark.usefixtures("_can_mount")
def test_the_metrics_are_the_status(scratch: Path) -> None:
    for number in range(3):
        write(scratch / f"lower/dir/file{number}", "x" * 1000)
    with _mounted(scratch) as (mnt, address):
        for number in range(3):
            append(mnt / f"dir/file{number}", "y")
        with (mnt / "dir/file0").open():
            metrics = _scrape(address)
            status = told("status", mnt)
        in_upper = tree(scratch / "upper")
        assert _values(metrics["pyunion_copy_ups"], "kind") == {
            "file": len([path for path in in_upper if not path.endswith("/")]),
            "directory": len([path for path in in_upper if path.endswith("/")]),
        }
        assert metrics["pyunion_copy_up_bytes"].samples[0].value == 3000
        assert metrics["pyunion_open_files"].samples[0].value == status["open_files"] == 1
        assert metrics["pyunion_nodes"].samples[0].value == status["cache"]["nodes"]
        requests = _values(metrics["pyunion_requests"], "kind")
        assert requests["open"] == status["requests"]["open"] == 4
        assert metrics["pyunion_requests"].type == "counter"
        assert metrics["pyunion_info"].samples[0].labels["mountpoint"] == str(mnt)
        assert metrics["process_start_time_seconds"].samples[0].value > 0


@pytest.mark.usefixtures("_can_mount")
def test_by_ipv6(scratch: Path) -> None:
    with _mounted(scratch, host="[::1]") as (_, address):
        assert address.startswith("[::1]:")
        assert "pyunion_requests" in _scrape(address)


@pytest.mark.usefixtures("_can_mount")
def test_clients_that_say_nothing_hurt_nobody(scratch: Path) -> None:
    write(scratch / "lower/file", "lower")
    with _mounted(scratch) as (mnt, address), ExitStack() as stack:
        host, _, port = address.rpartition(":")
        threads = Path(f"/proc/{told('status', mnt)['pid']}/task")
        before = len(list(threads.iterdir()))
        for _ in range(50):
            stack.enter_context(socket.create_connection((host, int(port))))
        assert (mnt / "file").read_text() == "lower"
        append(mnt / "file", "y")
        told("status", mnt)
        assert len(list(threads.iterdir())) <= before + 10, "a thread for every client"
        stack.close()
        with stack:
            assert "pyunion_requests" in _scrape_when_free(address)


def _scrape_when_free(address: str) -> dict[str, Metric]:
    """A client that is one too many is hung up on; those before it are gone in a moment."""
    while True:
        try:
            return _scrape(address)
        except OSError:
            continue


def test_an_address_that_cannot_be_had(scratch: Path) -> None:
    (scratch / "lower").mkdir()
    (scratch / "mnt").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_pyunion("mount", "--metrics", address, "--lower", scratch / "lower", scratch / "mnt")
    assert done.returncode == ExitCode.FAILURE
    assert f"cannot listen on {address} for --metrics: Address already in use; choose another" in done.stderr


@pytest.mark.parametrize("address", ["9300", ":9300", "localhost", "localhost:http", "1:2:3", "::1:9300"])
def test_what_is_no_address(scratch: Path, address: str) -> None:
    done = run_pyunion("mount", "--metrics", address, "--lower", scratch, scratch / "mnt")
    assert done.returncode == ExitCode.USAGE
    assert f"and '{address}' is none" in done.stderr


def test_the_library_is_for_those_who_ask() -> None:
    code = "import sys, pyunion.daemon; sys.exit('prometheus_client' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
