"""`pyunion tree`: a union as a tree, each entry in the colour of the branch that it comes from and with its name.

Owns the drawing. What there is, is found by pyunion/survey.py; the mounted file system is asked nothing.
"""

from __future__ import annotations

import os
from argparse import Namespace
from contextlib import ExitStack

from rich.text import Text
from rich.tree import Tree

from pyunion.branch.dirs import Branch
from pyunion.commands import drawing
from pyunion.commands.which import colour_of
from pyunion.control import client
from pyunion.errors import ExitCode, PyunionError, printable
from pyunion.survey import Child, Survey


def run(arguments: Namespace) -> int:
    if arguments.depth is not None and arguments.depth < 1:
        raise PyunionError("--depth takes a number from 1 on", ExitCode.USAGE)
    mount = client.union_at(arguments.mountpoint)
    below = os.fsencode(arguments.directory).strip(b"/")
    shown = os.path.join(os.fsencode(arguments.mountpoint), below).rstrip(b"/")
    with ExitStack() as stack:
        survey = Survey(*client.daemon_of(mount), stack)
        # a bind mount may show a part of the union only
        top = survey.top(os.path.join(mount.root, below))
        if top is None:
            raise PyunionError(f"the union shows no directory {os.fsdecode(shown)}; DIR is relative to its mount point")
        _Drawing(survey).draw(top._replace(name=shown), arguments.depth)
    return ExitCode.OK


class _Drawing:
    """One tree, and a legend above it."""

    def __init__(self, survey: Survey) -> None:
        self._survey = survey
        self._names = _short_names(survey)

    def draw(self, top: Child, depth: int | None) -> None:
        console = drawing.console()
        for branch in self._survey.branches:
            path = printable(os.fsdecode(branch.path))
            console.print(Text(f"[{self._names[branch]}] {path}", colour_of(self._survey, branch)), soft_wrap=True)
        tree = Tree(self._label(top))
        # by a list and not by recursion: a path may be of any depth
        left = [(top, tree, 1)]
        while left:
            parent, node, level = left.pop()
            for child in self._survey.children(parent):
                below = node.add(self._label(child))
                if child.is_directory and level != depth:
                    left.append((child, below, level + 1))
        console.print(tree)

    def _label(self, child: Child) -> Text:
        """The name, and the branches in brackets that it comes from, topmost first."""
        upper = self._names[self._survey.branches[0]]  # an entry of the index is upper's
        said = [self._names.get(branch, upper) for branch in child.branches]
        if child.data is not None:
            said.append(f"data of {self._names[child.data]}")
        name = printable(os.fsdecode(child.name)) + ("/" if child.is_directory else "")
        label = Text(name, colour_of(self._survey, child.branches[0]))
        label.append(f"  [{' + '.join(said)}]", "dim")
        if child.redirect is not None:
            label.append(f", is {printable(os.fsdecode(child.redirect))} below", "dim")
        return label


def _short_names(survey: Survey) -> dict[Branch, str]:
    """The last part of each branch's path, where that tells it from the others; else with its number."""
    names = {branch: printable(os.fsdecode(os.path.basename(branch.path))) or "/" for branch in survey.branches}
    seen = list(names.values())
    return {
        branch: name if seen.count(name) == 1 else f"{name}#{number}"
        for number, (branch, name) in enumerate(names.items())
    }
