"""`pyunion status`: how the mounted unions, or one of them, are doing, as their daemons tell it.

Owns the tables and which mounts are asked. One that cannot be asked (its daemon has ended, or is another user's) is
told with the reason, and the others are told all the same.
"""

from __future__ import annotations

import json
import os
from argparse import Namespace
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pyunion import mountinfo
from pyunion.commands import drawing
from pyunion.commands.quantities import duration, size
from pyunion.control import client
from pyunion.errors import ExitCode, PyunionError, printable
from pyunion.mountinfo import Mounted


def run(arguments: Namespace) -> int:
    if arguments.mountpoint is not None:
        told = [_ask(client.union_at(arguments.mountpoint))]
    else:
        told = [_ask_or_say_why(mount) for mount in _unions()]
    if arguments.json:
        print(json.dumps(told if arguments.mountpoint is None else told[0], indent=2))
        return ExitCode.OK
    console = drawing.console()
    if not told:
        drawing.say(console, "no union is mounted here")
    for status in told:
        _draw(console, status)
    return ExitCode.OK


def _unions() -> list[Mounted]:
    """Each union of this mount namespace once, by the first place that shows the whole of it."""
    found: dict[int, Mounted] = {}
    for mount in mountinfo.read():
        known = found.get(mount.device)
        if mount.fstype == client.FSTYPE and (known is None or len(known.root) > len(mount.root)):
            found[mount.device] = mount
    return list(found.values())


def _ask(mount: Mounted) -> dict[str, Any]:
    with client.Connection(mount) as connection:
        return dict(connection.ask("status"))


def _ask_or_say_why(mount: Mounted) -> dict[str, Any]:
    try:
        return _ask(mount)
    except PyunionError as error:
        return {"mountpoint": os.fsdecode(mount.point), "problem": str(error)}


def _draw(console: Console, status: dict[str, Any]) -> None:
    drawing.say(console, printable(status["mountpoint"]), "bold")
    if "problem" in status:
        drawing.say(console, f"  {printable(status['problem'])}", "red")
        return
    console.print(_branches(status["branches"]))
    for name, text in _lines(status):
        drawing.say(console, f"  {name:<12}{text}")
    for path in status.get("removed", ()):  # which an older daemon does not tell
        drawing.say(console, f"  removed     {printable(path)}: something of it is still in use")
    for copy in status["copy_ups"]["running"]:
        done = f"{size(copy['bytes'])} of {size(copy['total'])}, {duration(copy['seconds'])}"
        drawing.say(console, f"  copying     {printable(copy['path'])}: {done}")


def _branches(branches: list[dict[str, Any]]) -> Table:
    table = Table("branch", "", "state")
    for column in ("size", "used", "free"):
        table.add_column(column, justify="right")
    lowers = 0
    for branch in branches:
        is_upper = branch["role"] == "upper"
        colour = drawing.colour(lowers, is_upper=is_upper)
        lowers += not is_upper
        space = [size(branch[key]) if key in branch else "" for key in ("size", "used", "free")]
        state = Text(branch["state"], "none" if branch["state"] == "ok" else "bold red")
        table.add_row(Text(printable(branch["path"]), colour), branch["role"], state, *space)
    return table


def _lines(status: dict[str, Any]) -> list[tuple[str, str]]:
    copies, cache, requests = status["copy_ups"], status["cache"], status["requests"]
    passthrough = status["passthrough"]
    passed = f", {passthrough['files']} passed through" if passthrough["granted"] else "; no passthrough"
    most = dict(sorted(requests.items(), key=lambda item: -item[1])[:4])
    lines = [
        ("daemon", f"process {status['pid']}, version {status['version']}, up {duration(status['uptime'])}"),
        ("requests", f"{sum(requests.values())} ({_counts(most)})"),
        ("errors", _counts(status["errors"])),
        ("open", f"{status['open_files']} files{passed}"),
        ("copied up", f"{_counts(copies['done'])}; {size(copies['bytes'])}"),
        (
            "cache",
            f"{cache['nodes']} nodes, {cache['directories']} of at most {cache['most_directories']} directories of "
            f"branches; {status['descriptors']} descriptors in all",
        ),
        ("log level", status["log_level"]),
    ]
    return lines + ([("metrics", f"http://{status['metrics']}/metrics")] if status["metrics"] else [])


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
