"""Nodes live exactly as long as the kernel refers to them, and descriptors of directories are bounded."""

from __future__ import annotations

import os
from pathlib import Path

from tests.fs.conftest import ME, Build


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_forgotten_nodes_are_gone_children_before_parents_or_not(build: Build, tmp_path: Path) -> None:
    (tmp_path / "lower/a/b").mkdir(parents=True)
    (tmp_path / "lower/a/b/f").touch()
    bench = build()
    table = bench.fs.table
    before = descriptors()
    a, b, f = bench.node("a"), bench.node("a/b"), bench.node("a/b/f")
    assert len(table.nodes) == 4
    table.forget([(a.ino, 1)])
    table.forget([(b.ino, 1)])
    assert len(table.nodes) == 4  # the file still needs its place
    assert bench.node("a/b/f") is f
    table.forget([(f.ino, 1)])
    assert len(table.nodes) == 4
    table.forget([(f.ino, 1)])
    assert list(table.nodes.values()) == [table.root]
    assert descriptors() == before


def test_hard_links_are_one_node_under_all_their_names(build: Build, tmp_path: Path) -> None:
    (tmp_path / "lower/one").write_text("x")
    os.link(tmp_path / "lower/one", tmp_path / "lower/two")
    bench = build()
    one, two = bench.file("one"), bench.file("two")
    assert one is two
    bench.fs.table.forget([(one.ino, 2)])
    assert bench.fs.table.linked == {}


async def test_a_file_that_lost_its_known_name_goes_on_and_gets_the_next_one(build: Build, tmp_path: Path) -> None:
    (tmp_path / "upper/one").write_text("x")
    os.link(tmp_path / "upper/one", tmp_path / "upper/two")
    bench = build()
    file = bench.file("one")
    await bench.fs.remove.file(bench.directory(""), b"one")
    assert file.dead
    assert file.stat().st_nlink == 1
    fd = await bench.fs.files.open(file, os.O_RDONLY, ME)
    assert bytes(await bench.fs.files.read(fd, 0, 9)) == b"x"
    assert bench.file("two") is file
    assert file.pin == -1
    assert not file.dead


def test_numbers_are_unique_though_a_new_file_gets_the_number_of_one_that_is_still_held(
    build: Build, tmp_path: Path
) -> None:
    bench = build()
    root = bench.directory("")
    first, st, fd = bench.fs.create.file(root, b"f", 0o644, ME)
    os.close(fd)
    first.lookups = 1
    # what a branch does that reuses inode numbers at once
    (bench.upper / "g").touch()
    node = bench.node("g")
    bench.fs.table.nodes[node.ino] = bench.fs.table.nodes.pop(node.ino)
    clash = bench.fs.table
    from pyunion.fs.nodes import File

    other = File(root, b"other", first.dir, b"f")
    clash.add(other, st.st_dev, st.st_ino)
    assert other.ino not in (first.ino, node.ino)


def test_a_tree_deeper_than_the_cache_is_walked_with_few_descriptors(build: Build, tmp_path: Path) -> None:
    deep = tmp_path / "lower"
    for level in range(60):
        deep = deep / f"d{level}"
        deep.mkdir()
    (deep / "leaf").write_text("deep")
    bench = build(cached_dirs=8)
    before = descriptors()
    path = "/".join(f"d{level}" for level in range(60)) + "/leaf"
    leaf = bench.file(path)
    bench.fs.cache.trim()
    assert descriptors() - before <= 8 + 1
    assert leaf.stat().st_size == 4
