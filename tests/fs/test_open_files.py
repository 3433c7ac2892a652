"""What is known of open files that the kernel must hear: whose pages it holds are old, or are not here yet."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests.fs.conftest import ME, Bench


async def test_pages_are_stale_after_a_direct_write_beside_a_cached_reader(
    build: Callable[..., Bench], tmp_path: Path
) -> None:
    bench = build()
    (bench.upper / "f").write_text("x")
    file = bench.file("f")
    files = bench.fs.files
    direct = await files.open(file, os.O_RDWR | os.O_DIRECT, ME)
    assert files.leaves_stale(direct) is None
    reader = await files.open(file, os.O_RDONLY, ME)
    assert files.leaves_stale(direct) == file.ino
    assert files.leaves_stale(reader) is None
    files.release(reader)
    assert files.leaves_stale(direct) is None
    files.release(direct)
