"""The lower branches that workloads run on, each made when it is first needed and never changed.

A material is a directory with lower branches and, beside them, what scripts need: lists of names, archives. Knows no
workload and no system.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmark.workload import Sizes

REPOSITORY = Path(__file__).resolve().parents[2]
_TREE = Path("/usr/include")
_PATIENCE = 3600  # seconds for one script: what takes longer hangs
_DEBIAN = Path("debian-root")  # as a tree: the one of scripts/debian-root
_ENOUGH = 1000  # entries, for a tree to say something


@dataclass
class Material:
    """Lower branches, the topmost first, by their names in `directory`; and numbers for the scripts' environment."""

    directory: Path
    lowers: list[str] = field(default_factory=lambda: ["lower"])
    numbers: dict[str, int] = field(default_factory=dict)
    is_cached: bool = True

    @property
    def lower(self) -> Path:
        return self.directory / self.lowers[0]

    def cache(self) -> None:
        """Have all contents in the page cache."""
        if not self.is_cached:
            shell("tar cf - -- $LOWERS | cat >/dev/null", self.directory, LOWERS=" ".join(self.lowers))
        self.is_cached = True


def shell(script: str, cwd: Path, **variables: str | Path | int) -> None:
    """Run a script; raises subprocess.SubprocessError, with what it complained of."""
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    subprocess.run(
        ["sh", "-ec", script],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        errors="replace",
        check=True,
        timeout=_PATIENCE,
    )


# --- what there is ------------------------------------------------------------------------------------


def tree_of(said: Path | None, base: Path) -> Path:
    """The directory whose copy the workloads run on: what the user said, /usr/include, or else a Debian root."""
    if said not in (None, _DEBIAN):
        return said
    if said is None and _TREE.is_dir() and sum(len(names) for _, _, names in os.walk(_TREE)) >= _ENOUGH:
        return _TREE
    target = base / _DEBIAN
    subprocess.run([REPOSITORY / "scripts/debian-root", target], check=True)
    return target


def _copy_tree(source: Path, target: Path, most: int) -> int:
    """Copy a directory's first entries; how many there are."""
    target.mkdir(parents=True)
    # Without sockets, which tar has no place for, and without devices: fuse-overlayfs 1.10 fails to remove /dev/ptmx.
    find = "find . -xdev '(' -type d -o -type f -o -type l ')' -print0 | head -z -n $MOST"
    pack = f"{find} | tar --null --no-recursion -T - -cf - | tar x -C $TARGET"
    shell(pack, source, MOST=most, TARGET=target)
    return sum(1 + len(files) for _, _, files in os.walk(target))


def _list(path: Path, names: list[str]) -> None:
    path.write_text("".join(f"{name}\n" for name in names))


def _files(top: Path, most: int) -> list[str]:
    """Regular files below a directory, by their paths from it."""
    found: list[str] = []
    for directory, _, names in os.walk(top):
        paths = [Path(directory, name) for name in sorted(names) if "\n" not in directory + name]
        found += [str(path.relative_to(top)) for path in paths if path.is_file() and not path.is_symlink()]
        if len(found) >= most:
            break
    return found[:most]


# --- the makers ---------------------------------------------------------------------------------------


def make_tree(directory: Path, sizes: Sizes, source: Path) -> Material:
    made = Material(directory)
    made.numbers["ENTRIES"] = _copy_tree(source, made.lower / "tree", sizes.tree)
    names = _files(made.lower, sizes.files)
    _list(directory / "files", names)
    made.numbers["FILES"] = len(names)
    shell("tar cf tree.tar -C lower tree", directory)
    return made


def _zeros(path: Path, mib: int) -> None:
    """A file with data everywhere: what is sparse costs nothing to copy."""
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(os.urandom(1 << 20))


def make_big(directory: Path, sizes: Sizes, _: Path) -> Material:
    made = Material(directory)
    _zeros(made.lower / "big", sizes.big)
    return made


def make_huge(directory: Path, sizes: Sizes, _: Path) -> Material:
    made = Material(directory)
    _zeros(made.lower / "huge", sizes.huge)
    return made


def make_repository(directory: Path, sizes: Sizes, source: Path) -> Material:
    made = Material(directory)
    _copy_tree(source, made.lower / "repository", sizes.tree)
    as_somebody = "-c user.name=n -c user.email=e"
    shell(f"git init -q && git add . && git {as_somebody} commit -qm first && git gc -q", made.lower / "repository")
    return made


def make_sources(directory: Path, sizes: Sizes, _: Path) -> Material:
    """Sources that all include each of as many headers, and call each other in turn."""
    made = Material(directory)
    top = made.lower / "sources"
    top.mkdir(parents=True)
    numbers = range(sizes.sources)
    includes = "#include <stdio.h>\n#include <stdlib.h>\n" + "".join(f'#include "f{n}.h"\n' for n in numbers)
    for n in numbers:
        (top / f"f{n}.h").write_text(f"struct s{n} {{ int member[{n + 1}]; }};\nint f{n}(int);\n")
        call = f"f{n + 1}(value + {n})" if n + 1 < sizes.sources else "value"
        (top / f"f{n}.c").write_text(f"{includes}int f{n}(int value) {{ return {call}; }}\n")
    (top / "main.c").write_text(f'{includes}int main(void) {{ return !printf("%d\\n", f0(1)); }}\n')
    return made


def make_root(directory: Path, _: Sizes, __: Path) -> Material:
    made = Material(directory)
    subprocess.run([REPOSITORY / "scripts/debian-root", made.lower], check=True, capture_output=True, text=True)
    return made


def make_layers(directory: Path, layers: int, files: int) -> Material:
    """Layers with files of their own in the same directory `d`; and lists of these files and of names in no layer."""
    made = Material(directory, lowers=[str(number) for number in range(layers)])
    names = []
    for layer in made.lowers:
        (directory / layer / "d").mkdir(parents=True)
        for number in range(files):
            names.append(f"d/{layer}-{number}")
            (directory / layer / names[-1]).touch()
    _list(directory / "files", names)
    _list(directory / "absent", [f"{name}-not" for name in names])
    made.numbers["ENTRIES"] = len(names)
    return made


def make_deep(directory: Path, _: Sizes, __: Path, *, layers: int) -> Material:
    """A thousand files in the lowest layer, in a directory that every layer has."""
    made = Material(directory, lowers=[str(number) for number in range(layers)])
    for layer in made.lowers:
        (directory / layer / "d").mkdir(parents=True)
    names = [f"d/{number}" for number in range(1000)]
    for name in names:
        (directory / made.lowers[-1] / name).touch()
    _list(directory / "files", names)
    made.numbers["ENTRIES"] = len(names)
    return made


def make_files(directory: Path, _: Sizes, __: Path, *, count: int) -> Material:
    """Empty files, in directories of a hundred."""
    made = Material(directory)
    for number in range(count):
        path = made.lower / f"d/{number // 100}/{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    made.numbers["ENTRIES"] = count
    return made


MAKERS: dict[str, Callable[[Path, Sizes, Path], Material]] = {
    "tree": make_tree,
    "big": make_big,
    "huge": make_huge,
    "repository": make_repository,
    "sources": make_sources,
    "root": make_root,
    "100-layers": lambda directory, sizes, _: make_layers(directory, 100, sizes.layer_files),
    # The kernel takes no more.
    "500-layers": lambda directory, _, __: make_layers(directory, 500, 1),
    **{f"{number}-deep": partial(make_deep, layers=number) for number in (1, 10, 100, 500)},
    **{f"{number}-files": partial(make_files, count=number) for number in (1_000, 10_000, 100_000)},
}


class Ground:
    """The file systems for all branches of a run, and the materials that are there. `usual` is the type of the one for
    whoever wants none in particular, "" is the machine's own."""

    def __init__(self, base: Path, sizes: Sizes, source: Path, usual: str = "") -> None:
        self.base = base
        self._sizes = sizes
        self._source = source
        self._usual = usual
        self._materials: dict[tuple[str, str], Material] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Ground:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def material(self, name: str, file_system: str = "") -> Material:
        """Raises subprocess.CalledProcessError or OSError where it cannot be made."""
        key = (file_system or self._usual, name)
        if key not in self._materials:
            directory = self.top(file_system) / f"lower-{name}"
            directory.mkdir()
            self._materials[key] = MAKERS[name](directory, self._sizes, self._source)
        return self._materials[key]

    def top(self, file_system: str) -> Path:
        """A directory on a file system of this type."""
        file_system = file_system or self._usual
        if not file_system:
            return self.base
        point = self.base / file_system
        if not point.exists():
            self._stack.enter_context(_new_file_system(self.base / f"{file_system}.image", point, self._image_mib()))
        return point

    def _image_mib(self) -> int:
        """Room for all materials, and for a copy or two of the largest in upper; what is not used is a hole."""
        return 4096 + 4 * self._sizes.huge

    def drop_caches(self) -> None:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
        for material in self._materials.values():
            material.is_cached = False


# All is there from the start: nothing is written later while somebody is timed.
_MKFS = {"ext4": ["-E", "lazy_itable_init=0,lazy_journal_init=0"]}


@contextlib.contextmanager
def _new_file_system(image: Path, point: Path, mib: int) -> Iterator[None]:
    with image.open("wb") as file:
        file.truncate(mib << 20)
    options = _MKFS.get(point.name, [])
    subprocess.run([f"mkfs.{point.name}", "-q", *options, image], check=True, capture_output=True, text=True)
    point.mkdir()
    try:
        subprocess.run(["mount", "-o", "loop", image, point], check=True, capture_output=True, text=True)
        yield
    finally:
        subprocess.run(["umount", point], capture_output=True)
        point.rmdir()
        image.unlink()
