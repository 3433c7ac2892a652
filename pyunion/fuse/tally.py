"""How many requests of each kind came, and how many ended by trouble: counted always, as it costs next to nothing.

Owns the counts of this process, which serves one mount. What is recorded only while somebody looks is in recording.
"""

from __future__ import annotations

from collections import Counter
from errno import EDQUOT, EIO, EMFILE, ENFILE, ENOMEM, ENOSPC, ESTALE, EUCLEAN, errorcode

from pyunion.fuse.layout import Op

# What no caller provokes by asking for the wrong thing: a branch's disk, a limit of the daemon, or a fault of ours.
_TROUBLE = frozenset({EDQUOT, EIO, EMFILE, ENFILE, ENOMEM, ENOSPC, ESTALE, EUCLEAN})

# By kind: an opcode, or without the extension a handler of pyfuse3's. Counted up by whoever takes a request.
requests = [0] * 64
_names = {op.value: op.name.lower() for op in Op}
_errors: Counter[str] = Counter()


def kind_of(handler: str) -> int:
    """The kind of the requests that a handler of pyfuse3's answers; a new one if these are not those of one opcode."""
    for kind, name in _names.items():
        if name == handler:
            return kind
    kind = len(requests)
    requests.append(0)
    _names[kind] = handler
    return kind


def name_of(kind: int) -> str:
    """As it is told."""
    return _names[kind]


def note_error(number: int) -> None:
    """A request is answered by this errno."""
    if number in _TROUBLE:
        _errors[errorcode[number]] += 1


def requests_by_name() -> dict[str, int]:
    """The requests since the start; those that pyfuse3 handles alone are not among them. From any thread."""
    return {name: requests[kind] for kind, name in _names.items() if requests[kind]}


def errors() -> dict[str, int]:
    """The requests that ended by trouble since the start, by the name of the errno. From any thread."""
    return dict(_errors)
