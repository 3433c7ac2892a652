r"""`pyunion completion`: what a shell reads to complete the words of pyunion.

Owns what the words after an argument are, told by its metavar. The commands and switches are those of the parser, and
how a shell is told of them is shtab's. What is printed is static, so that a TAB starts no Python.
"""

from __future__ import annotations

import argparse
import re
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Iterator

import shtab

from pyunion.errors import ExitCode

# What takes a value and is none of these is completed as a file. SRC is one, as `pyunion mount MNT` has no SRC.
_DIRECTORY = {"BRANCH", "DEST", "DIR", "MNT", "NEW", "SRC", "UPPER"}
_DIRECTORIES = {"DIR[:DIR...]", "OPTIONS"}  # after each colon; and after each = of -o

# shtab completes unquoted, and takes no notice that bash cuts words at : and = (COMP_WORDBREAKS): here they are joined
# again, but for --switch=VALUE, which is two. A list is completed after its last : or =; where COMP_WORDBREAKS has
# them no more, readline replaces the whole list, and gets it back.
_BASH = r"""
_pyunion_files() { compgen -f -- "$1"; }
_pyunion_directory() { compgen -d -- "$1"; }
_pyunion_directories() {
  local last=${1##*[:=]}
  local before=${_pyunion_replaced%"$last"}
  compgen -d -P "$before" -- "$last"
}
_pyunion() {
  local word joins='' _pyunion_replaced=${COMP_WORDS[COMP_CWORD]}
  local -a words=()
  for word in "${COMP_WORDS[@]:0:COMP_CWORD+1}"; do
    if [[ $word == [:=]* || $joins ]] && ((${#words[@]})); then
      words[-1]+=$word
    else
      words+=("$word")
    fi
    joins=
    [[ $word != *[:=] ]] || joins=1
    if [[ ${words[-1]} =~ ^(--[^=:]*)=(.*)$ ]]; then
      words[-1]=${BASH_REMATCH[1]}
      words+=("${BASH_REMATCH[2]}")
    fi
  done
  [[ $_pyunion_replaced != [:=]* ]] || _pyunion_replaced=
  local -a COMP_WORDS=("${words[@]}")
  local COMP_CWORD=$((${#words[@]} - 1))
  _shtab_pyunion
}
"""
_ZSH = r"""
_pyunion_directories() { compset -P '*[:=]'; _files -/; }
"""
_FISH = r"""
function _pyunion_directories
  set -l word (commandline -ct)
  set -l before (string match -r '.*[:=]' -- $word)
  for directory in (__fish_complete_directories (string replace -r '.*[:=]' '' -- $word))
    echo "$before$directory"
  end
end
"""
_FUNCTIONS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def run(arguments: Namespace) -> int:
    print(script(arguments.parser, arguments.shell))
    return ExitCode.OK


def script(parser: ArgumentParser, shell: str) -> str:
    """What `shell` (bash, zsh or fish) has to read. The parser is changed: it is of no other use afterwards."""
    for action in _arguments(parser):
        if action.nargs == 0:
            continue
        if not action.choices:
            action.complete = _kind(str(action.metavar))  # type: ignore[attr-defined]
        if shell == "zsh":
            _as_zsh_writes(action)
    text = shtab.complete(parser, shell, preamble=_FUNCTIONS[shell])
    if shell == "bash":
        return text.replace("-F _shtab_pyunion pyunion", "-F _pyunion pyunion")
    return re.sub(r'"\(\*\)::?', '"*:', text) if shell == "zsh" else text  # each BRANCH, and not the first only


def _as_zsh_writes(action: Action) -> None:
    """What shtab passes on as it is, and has a meaning of its own in zsh (_arguments in zshcompsys(1))."""
    if isinstance(action.metavar, str):
        action.metavar = action.metavar.replace(":", r"\:")
    # The value may come after a = as well.
    action.option_strings = [f"{name}=" if name.startswith("--") else name for name in action.option_strings]


def _kind(metavar: str) -> dict[str, str | dict[str, str]]:
    if metavar in _DIRECTORY:
        return {**shtab.DIRECTORY, "bash": "_pyunion_directory"}
    if metavar in _DIRECTORIES:
        return {"bash": "_pyunion_directories", "zsh": "_pyunion_directories", "fish": "(_pyunion_directories)"}
    return {**shtab.FILE, "bash": "_pyunion_files"}


def _arguments(parser: ArgumentParser) -> Iterator[Action]:
    """Of the parser and of all its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in set(action.choices.values()):
                yield from _arguments(command)
        else:
            yield action
