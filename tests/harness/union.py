"""A union under test: its branches on disk, its mount, and what must hold whenever it is unmounted.

Three lower branches are always there, so that a test says only what it puts into them. Nothing here asks
which implementation it has, except that pyunion's result is held against the kernel's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tests.harness.files import is_whiteout
from tests.harness.mounts import KernelMount, Layers, Mount, PyunionMount
from tests.harness.snapshot import Snapshot, assert_same, snapshot


class Union:
    """Branches low, low2, low3 (topmost first) and top (the writable one), to be mounted on `at`."""

    def __init__(self, base: Path, kind: str) -> None:
        self.base = base
        self.kind = kind
        self.low, self.low2, self.low3 = (self._directory(f"lower{n}") for n in (1, 2, 3))
        self.top = self._directory("upper")
        self.work = self._directory("work")
        self.at = self._directory("union")
        self.mounting: Mount = PyunionMount(self.at) if kind == "pyunion" else KernelMount(self.at)
        # A test that makes something which the kernel cannot show, or which takes too long to walk, says so.
        self.compare_with_kernel = kind == "pyunion"
        self.watch_lowers = True
        self._layers = Layers(())
        self._options: Sequence[str] = ()
        self._before: list[Snapshot] = []
        self._is_mounted = False

    def _directory(self, name: str) -> Path:
        path = self.base / name
        path.mkdir()
        return path

    @property
    def daemon(self) -> PyunionMount:
        assert isinstance(self.mounting, PyunionMount)
        return self.mounting

    def mount(
        self,
        *options: str,
        lowers: Sequence[Path] | None = None,
        writable: bool = True,
        data: Sequence[Path] = (),
    ) -> None:
        """Mount the union; MountRefused says why it could not be."""
        chosen = (self.low, self.low2, self.low3) if lowers is None else lowers
        upper, work = (self.top, self.work) if writable else (None, None)
        self._layers = Layers(chosen, upper, work, data)
        self._options = options
        missing = any(not lower.exists() for lower in chosen)  # the program is to say so, not the snapshot
        self._before = [] if missing else self._lower_snapshots()
        self.mounting.start(self._layers, options)
        self._is_mounted = True

    def unmount(self) -> None:
        """Unmount, and check: lower branches untouched, work directory clean, same tree by the kernel."""
        if not self._is_mounted:
            return
        view = snapshot(self.at) if self.compare_with_kernel else {}
        self.mounting.stop()
        self._is_mounted = False
        lowers = zip(self._layers.lowers, self._before, self._lower_snapshots(), strict=True)
        for lower, before, after in lowers:
            assert_same(before, after, f"{lower} was changed (before | after)")
        assert not _left_in(self.work), "files are left in the work directory"
        if self.compare_with_kernel:
            by_the_kernel = self._view_by(KernelMount(self.at))
            assert_same(view, by_the_kernel, "the same branches show different trees (pyunion | kernel)")

    def restacked(self, *lowers: Path) -> None:
        """The test has given the running mount these lower branches, or has changed them from outside."""
        self._layers = self._layers._replace(lowers=lowers)
        self._before = self._lower_snapshots()

    def assert_shows_its_branches(self, *, by_the_kernel: bool = True) -> None:
        """The mount, which goes on, shows what the kernel, or a new mount, makes of the same branches."""
        elsewhere = self.base / "elsewhere"
        elsewhere.mkdir(exist_ok=True)
        view = snapshot(self.at)
        fresh = self._view_by(KernelMount(elsewhere) if by_the_kernel else PyunionMount(elsewhere))
        assert_same(view, fresh, "the same branches show different trees (this mount | another one)")

    def remount(self) -> None:
        """Unmount and mount again with the same options: what is seen now is what is on disk."""
        layers, options = self._layers, self._options
        self.unmount()
        self.mount(*options, lowers=layers.lowers, writable=layers.upper is not None, data=layers.data)

    def forget(self) -> None:
        """The test itself has ended the mount, by a signal or by umount."""
        Mount.live.discard(self.mounting)
        self._is_mounted = False

    def clean_up(self) -> None:
        """At a test's end: a strict unmount, and whatever happens nothing stays mounted."""
        try:
            self.unmount()
        finally:
            if self.mounting in Mount.live:
                self.mounting.abandon()

    def _lower_snapshots(self) -> list[Snapshot]:
        return [snapshot(lower) if self.watch_lowers else {} for lower in self._layers.lowers]

    def _view_by(self, mount: Mount) -> Snapshot:
        """The same branches as another mount shows them, read-only so that looking changes nothing."""
        upper = [self._layers.upper] if self._layers.upper else []
        layers = [*upper, *self._layers.lowers]
        if len(layers) == 1:  # overlayfs wants two
            empty = self.base / "empty"
            empty.mkdir(exist_ok=True)
            layers.append(empty)
        mount.start(Layers(layers, data=self._layers.data), ["metacopy=on"])
        try:
            return snapshot(mount.point)
        finally:
            mount.stop()


def _left_in(work: Path) -> list[Path]:
    """Objects left in a work directory, but for those that are meant to stay: a whiteout to make links of, the index,
    and the mark of a volatile mount.
    """
    found = [Path(where) / name for where, _, names in os.walk(work) for name in names]
    stay = (work / "index", work / "work/incompat")
    return [path for path in found if not any(map(path.is_relative_to, stay)) and not is_whiteout(path)]
