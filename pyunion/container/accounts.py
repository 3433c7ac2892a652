"""Who the user of an image is, by the passwd and group files in it.

Owns the forms that `User` of an image's config may have (image-spec, config.md): USER or USER:GROUP, each a name or a
number. Reads text that it is given; the C library's look-up would take the machine's, or run code of the image's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pyunion.errors import PyunionError


class Account(NamedTuple):
    """The ids of a process, and where its user is at home."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


def find(user: str, passwd: str, group: str) -> Account:
    """The account that an image's `User` means; root for none. A number need not be in the files.

    The user's further groups count where no group is named, as with docker. Raises PyunionError.
    """
    wanted, _, wanted_group = user.partition(":")
    wanted = wanted or "0"
    account, name = _user(wanted, passwd)
    groups = list(_records(group, 4))
    if wanted_group:
        return account._replace(gid=_group(wanted_group, groups))
    members = (int(fields[2]) for fields in groups if name and name in fields[3].split(","))
    return account._replace(groups=tuple(members))


def _user(wanted: str, passwd: str) -> tuple[Account, str]:
    for fields in _records(passwd, 7):
        if wanted in (fields[0], fields[2]):
            return Account(int(fields[2]), int(fields[3]), (), fields[5] or "/"), fields[0]
    if not _is_id(wanted):
        raise PyunionError(f"the image's user '{wanted}' is not in its /etc/passwd")
    return Account(int(wanted), 0), ""


def _group(wanted: str, groups: list[list[str]]) -> int:
    for fields in groups:
        if wanted in (fields[0], fields[2]):
            return int(fields[2])
    if not _is_id(wanted):
        raise PyunionError(f"the image's group '{wanted}' is not in its /etc/group")
    return int(wanted)


def _records(text: str, count: int) -> Iterator[list[str]]:
    """The lines with that many fields and numbers where ids belong (passwd(5), group(5))."""
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) == count and _is_id(fields[2]) and (count < 7 or _is_id(fields[3])):
            yield fields


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal() and int(text) < (1 << 32) - 1
