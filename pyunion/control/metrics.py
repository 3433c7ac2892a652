"""The counts of a mount for Prometheus, by HTTP at an address that the user has named.

Owns the names of the metrics, by Prometheus's conventions, and the server: a few threads of its own, each with a time
limit, so that neither a scrape nor a client that never ends one keeps the mount's requests waiting. What is counted is
pyunion/control/facts.py.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, ProcessCollector, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from pyunion import __version__
from pyunion.control.facts import Facts
from pyunion.errors import PyunionError, printable

log = logging.getLogger(__name__)

_MOST_CLIENTS = 4
_CLIENT_S = 5.0  # for each read from a client and each write to it
_PAUSE_S = 0.1  # after each client: whoever scrapes without end shall not keep the interpreter from the mount


def serve(wanted: str, facts: Facts, stack: ExitStack) -> str:
    """Answer scrapes at HOST:PORT until `stack` ends; returns the address, which tells the port if 0 was wanted."""
    host, _, port = wanted.rpartition(":")
    try:
        server = _bind(host.strip("[]"), int(port))
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise PyunionError(f"cannot listen on {wanted} for --metrics: {why}; choose another address") from None
    registry = CollectorRegistry()
    registry.register(_Counts(facts))
    ProcessCollector(registry=registry)
    server.set_app(make_wsgi_app(registry))
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
    address = f"{host}:{server.server_port}"
    log.info("metrics are at http://%s/metrics", address)
    return address


def _bind(host: str, port: int) -> _Server:
    family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    kind = type("_FamilyServer", (_Server,), {"address_family": family})
    server: _Server = kind(place, _Handler)
    return server


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_S

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def address_string(self) -> str:
        return str(self.client_address[0])


class _Server(ThreadingMixIn, WSGIServer):
    """So many clients at a time; a further one is hung up on."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, *arguments: Any) -> None:
        self._free = threading.Semaphore(_MOST_CLIENTS)
        super().__init__(*arguments)

    def server_bind(self) -> None:
        """As WSGIServer's, but for the name of the machine, which may take a name server that does not answer."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
            time.sleep(_PAUSE_S)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a client of the metrics has gone, or was too slow", exc_info=True)


class _Counts(Collector):
    """The facts at the moment of a scrape."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts

    def describe(self) -> list[Metric]:
        return []  # asked for at every scrape and at no other time

    def collect(self) -> Iterator[Metric]:
        counts, copies = self._facts.counts(), self._facts.copy_ups()
        info = {"version": __version__, "mountpoint": printable(os.fsdecode(self._facts.mountpoint))}
        yield InfoMetricFamily("pyunion", "The mount that these metrics are of.", info)
        yield _counter("requests", "Requests of the kernel, by kind.", "kind", counts["requests"])
        yield _counter("errors", "Requests that ended by trouble, by errno.", "errno", counts["errors"])
        yield _counter("copy_ups", "Objects that were copied to the upper branch, by kind.", "kind", copies["done"])
        yield _counter("copy_up_bytes", "Data that were copied to the upper branch.", None, {"": copies["bytes"]})
        yield _gauge("copy_ups_running", "Copies that are being made.", len(copies["running"]))
        yield _gauge("open_files", "Open files.", counts["open_files"])
        files = counts["passthrough"]["files"]
        yield _gauge("passed_through_files", "Open files that the kernel reads and writes by itself.", files)
        yield _gauge("removed_branches", "Removed branches that are still in use.", len(counts["removed"]))
        yield _gauge("nodes", "Objects that the kernel knows.", counts["cache"]["nodes"])
        yield _gauge("cached_directories", "Descriptors of directories of branches.", counts["cache"]["directories"])


def _counter(name: str, help_text: str, label: str | None, values: dict[str, int]) -> Metric:
    family = CounterMetricFamily(f"pyunion_{name}", help_text, labels=[label] if label else [])
    for key, value in values.items():
        family.add_metric([key] if label else [], value)
    return family


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"pyunion_{name}", help_text, value=value)
