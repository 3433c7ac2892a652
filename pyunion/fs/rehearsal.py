"""What other lower branches under the known nodes will ask of branches that may not answer, before the step is made.

Owns a walk that follows pyunion/fs/restack.py through the nodes and asks no less than that, and changes nothing. Where
an answer is not known it goes no further: it is to be made again when that is known, until it asks for nothing more.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pyunion.branch.dirs import Dir
from pyunion.fs.lookup import FEW, Lookup
from pyunion.fs.nodes import Directory, File, Table
from pyunion.fs.restack import depends, layers_after, names_in, tree_of, where
from pyunion.fs.waiting import Question, Unanswered

_T = TypeVar("_T")


class Rehearsal:
    """One walk, with these layers for the root. Between two steps anything may happen to the nodes."""

    def __init__(self, table: Table, lookup: Lookup, roots: Sequence[Dir], *, changed_outside: bool) -> None:
        self._table = table
        self._lookup = copy.copy(lookup)
        self._lookup.root = Directory(None, b"", tuple(roots))
        self._changed_outside = changed_outside
        self._questions: dict[Question, None] = {}
        self._todo: list[tuple[Directory, Sequence[Dir]]] = [(table.root, roots)]

    @property
    def goes_on(self) -> bool:
        return bool(self._todo)

    def step(self, *, every: bool) -> list[Question]:
        """What the next directory gives to ask; `every` as for Restacking."""
        self._questions = {}
        directory, layers = self._todo.pop()
        if self._table.nodes.get(directory.ino) is directory:
            self._directory(directory, layers, every)
        return list(self._questions)

    def _known(self, function: Callable[..., _T], *arguments: Any) -> _T | None:
        """What it says if that is known and no error."""
        try:
            return function(*arguments)
        except Unanswered as unanswered:
            self._questions[unanswered.question] = None
        except OSError:
            pass
        return None

    def _directory(self, directory: Directory, layers: Sequence[Dir], every: bool) -> None:
        before, after = ({where(layer): layer for layer in some} for some in (directory.layers, layers))
        changed = [layer for place, layer in before.items() if place not in after]
        changed += [layer for place, layer in after.items() if every or place not in before]
        if directory is self._table.root:
            self._known(layers[0].ask, os.fstatvfs)
        listed = [self._known(names_in, layer) for layer in changed]
        names = set().union(*(found or () for found in listed))
        if None in listed or len(layers) > FEW:
            listed += [self._known(names_in, layer) for layer in layers]
        if None in listed and not self._questions:  # one that cannot be listed, which gives nothing more to ask
            names.update(directory.children)
        shown = Directory(None, directory.name, tuple(layers))
        for name, node in list(directory.children.items()):
            if isinstance(node, Directory):
                self._subdirectory(shown, name, node)
            elif isinstance(node, File) and depends(node) and (every or name in names or node.data):
                self._file(shown, name, node)

    def _subdirectory(self, parent: Directory, name: bytes, directory: Directory) -> None:
        asked = len(self._questions)
        found = self._known(self._lookup.find, parent, name)
        if len(self._questions) > asked:
            return
        layers = layers_after(directory, found, self._lookup.root.layers)
        if layers:
            self._todo.append((directory, layers))
            return
        for gone in tree_of(directory):
            for child in gone.children.values():
                if isinstance(child, File):
                    self._dropped(child)

    def _file(self, parent: Directory, name: bytes, file: File) -> None:
        found = self._known(self._lookup.find, parent, name)
        for data in (file.data, found.data if found is not None else None):
            if data is not None:
                self._known(data[0].stat, data[1])
        self._dropped(file)

    def _dropped(self, file: File) -> None:
        if not self._changed_outside and not file.in_upper and file.remote is not None and not file.is_held():
            self._known(file.stat)
