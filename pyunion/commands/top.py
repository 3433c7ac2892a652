"""`pyunion top`: what a union is busy with, report by report.

Owns the screen and the pace. The daemon records, for as long as the connection lasts (pyunion/fuse/recording.py).
"""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pyunion.commands import drawing
from pyunion.control import client
from pyunion.errors import ExitCode, printable
from pyunion.interrupts import put_off

_ROWS = 10
_TIMES = ("mean", "p50", "p90", "p99", "max")


def run(arguments: Namespace) -> int:
    mount = client.union_at(arguments.mountpoint)
    with client.Connection(mount) as connection:
        reports = _reports(connection, arguments.interval, arguments.once)
        title = printable(os.fsdecode(mount.point))
        if arguments.json:
            for report in reports:
                print(json.dumps(report), flush=True)
        elif arguments.once or not sys.stdout.isatty():
            console = drawing.console()
            for report in reports:
                console.print(_screen(title, report))
        else:
            # The screen is another one meanwhile, and is to come back.
            start = Text(f"{title}: recording")
            with put_off() as let_in, Live(start, screen=True, auto_refresh=False) as live, let_in():
                for report in reports:
                    live.update(_screen(title, report), refresh=True)
    return ExitCode.OK


def _reports(connection: client.Connection, interval: float, once: bool) -> Iterator[dict[str, Any]]:
    connection.ask("sample", most=0)  # begins the recording
    while True:
        time.sleep(interval)
        yield connection.ask("sample", most=_ROWS)
        if once:
            return


def _screen(title: str, report: dict[str, Any]) -> Group:
    seconds = report["seconds"]
    kinds = Table("request", title_justify="left")
    for column in ("per second", *(f"{name} us" for name in _TIMES)):
        kinds.add_column(column, justify="right")
    by_count = sorted(report["kinds"].items(), key=lambda item: -item[1]["requests"])
    for kind, told in by_count:
        kinds.add_row(kind, _rate(told, seconds), *(f"{told[name]:.0f}" for name in _TIMES))
    total = sum(told["requests"] for _, told in by_count)
    return Group(
        Text(f"{title}: {total / seconds:.0f} requests per second, over {seconds:.1f} s", "bold"),
        kinds,
        _busiest("path", [(printable(told["path"]), told) for told in report["paths"]], seconds),
        _busiest(
            "process",
            [(f"{told['pid']} {printable(told['command'])}", told) for told in report["processes"]],
            seconds,
        ),
    )


def _busiest(what: str, rows: list[tuple[str, dict[str, Any]]], seconds: float) -> Table:
    table = Table(what)
    table.add_column("per second", justify="right")
    for name, told in rows:
        table.add_row(Text(name), _rate(told, seconds))
    return table


def _rate(told: dict[str, Any], seconds: float) -> str:
    return f"{told['requests'] / seconds:.0f}"
