"""The architecture, held by tests: imports go one way, I/O lives in its rooms, and rooms stay small.

Reads pyunion's source, and for the sizes that of scripts, as syntax trees; imports nothing of it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "pyunion"
MODULES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((PACKAGE.parent / "scripts").rglob("*.py"))
MAX_MODULE, MAX_FUNCTION = 500, 60

# Each part, and the parts of pyunion that it may import besides itself. Everything may import `errors`.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli"},
    "cli": {"cli_layers", "commands", "config"},
    "cli_layers": set(),
    "commands": {
        *("awake", "background", "board", "branch", "config", "configfile", "container", "control", "daemon"),
        *("dockerlayer", "interrupts", "layers", "logs", "mountinfo", "notify", "preflight", "survey", "union"),
        *("unmounting", "users"),
    },
    "control": {"board", "branch", "config", "fs", "fuse", "logs", "mountinfo", "users"},
    "survey": {"branch", "fs", "union"},
    "daemon": {
        *("awake", "board", "branch", "config", "control", "fs", "fuse", "live", "logs", "mountinfo", "notify"),
        "union",
    },
    "live": {"branch", "config", "fs", "fuse", "preflight"},
    "configfile": {"config"},
    "background": {"config", "interrupts", "logs", "notify"},
    "preflight": {"branch", "config", "mountinfo", "users"},
    "config": {"union"},
    "dockerlayer": set(),
    "users": {"board", "mountinfo"},
    "board": {"config"},
    "logs": {"config", "journal"},
    "journal": set(),
    "awake": set(),
    "mountinfo": set(),
    "notify": set(),
    "errors": set(),
    "interrupts": set(),
    "unmounting": {"branch"},
    "fuse": {"awake", "fs", "mountinfo", "notify", "unmounting", "users"},
    "fs": {"branch", "union"},
    "container": {"branch", "layers"},
    "layers": {"branch", "interrupts", "union"},
    "branch": {"union"},
    "union": set(),
}
# Where a foreign module may be used; anywhere else it is a mistake.
ONLY_IN = {
    "pyfuse3": {"fuse"},
    "rich": {"cli", "commands"},
    "shtab": {"commands"},
    "prometheus_client": {"control"},
}
# The rules of the union do no I/O: they cannot import what does.
NOT_IN_UNION = {"os", "io", "socket", "pathlib", "shutil", "subprocess", "ctypes", "fcntl", "trio", "asyncio"}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a module imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            # `from pyunion import daemon` imports a part just as `from pyunion.daemon import ...` does
            for alias in node.names if node.module == "pyunion" else ():
                yield node.lineno, f"pyunion.{alias.name}"
            if node.module not in (None, "pyunion"):
                yield node.lineno, str(node.module)


def forbidden(path: Path) -> Iterator[str]:
    part = part_of(path)
    for line, name in imports(path):
        top, _, rest = name.partition(".")
        where = f"{path.relative_to(PACKAGE.parent)}:{line}"
        if top == "pyunion":
            other = rest.partition(".")[0]
            if other not in {part, "errors", "__version__", *MAY_IMPORT[part]}:
                yield f"{where}: {part} may not import {name}"
        elif part not in ONLY_IN.get(top, {part}):
            yield f"{where}: {top} is for {', '.join(sorted(ONLY_IN[top]))} only"
        elif part == "union" and top in NOT_IN_UNION:
            yield f"{where}: the rules of the union do no I/O and may not import {top}"


def test_imports_go_one_way() -> None:
    assert [line for path in MODULES for line in forbidden(path)] == []


def test_every_part_has_its_rule() -> None:
    assert {part_of(path) for path in MODULES} <= MAY_IMPORT.keys()


def test_the_rules_have_no_cycle() -> None:
    """Were two parts allowed to import each other, the listing would no longer show who builds on whom."""
    left = dict(MAY_IMPORT)
    while free := [part for part, needs in left.items() if not needs & left.keys()]:
        for part in free:
            del left[part]
    assert not left, f"these import each other: {sorted(left)}"


def excused(lines: list[str], first: int, last: int) -> bool:
    """Whether a comment `# size: why` is in these lines or the one above them."""
    return any("# size:" in line for line in lines[max(first - 2, 0) : last])


def oversized(path: Path) -> Iterator[str]:
    text = path.read_text()
    lines = text.splitlines()
    name = path.relative_to(PACKAGE.parent)
    if len(lines) > MAX_MODULE and not excused(lines, 1, 20):
        yield f"{name} has {len(lines)} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            last = node.end_lineno or node.lineno
            if last - node.lineno >= MAX_FUNCTION and not excused(lines, node.lineno, last):
                yield f"{name}:{node.lineno} {node.name} has {last - node.lineno + 1} lines"


def test_modules_and_functions_stay_small() -> None:
    assert [line for path in (*MODULES, *SCRIPTS) for line in oversized(path)] == []


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_a_module_opens_with_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "a docstring says what it owns and may not know"
