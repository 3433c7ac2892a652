"""Inode numbers: those of the branches, with the file system in the high bits as the kernel's xino has it.

The figures are the kernel's: `stat` on an overlay of two ext4 and xfs images over a tmpfs.
"""

from __future__ import annotations

import pytest

from pyunion.union.numbers import Numbers

UPPER, EXT4, XFS, NESTED = 40, 41, 42, 43


def test_on_one_file_system_numbers_are_the_branches_own() -> None:
    assert Numbers(UPPER, [UPPER, UPPER]).of(UPPER, 1 << 62) == 1 << 62
    assert Numbers(None, [EXT4, EXT4]).of(EXT4, 13) == 13


def test_the_order_of_the_branches_says_which_bits_a_file_system_has() -> None:
    numbers = Numbers(UPPER, [EXT4, XFS, UPPER])
    assert numbers.of(UPPER, 11) == 11
    assert numbers.of(XFS, 132) == 9223372036854775940
    assert numbers.of(EXT4, 13) == 4611686018427387917
    assert Numbers(UPPER, [EXT4]).of(EXT4, 13) == 1 << 63 | 13


def test_without_upper_its_place_stays_free() -> None:
    numbers = Numbers(None, [EXT4, XFS])
    assert (numbers.of(EXT4, 13), numbers.of(XFS, 132)) == (4611686018427387917, 9223372036854775940)


@pytest.mark.parametrize("lowers", [[UPPER], [EXT4], [EXT4, XFS], list(range(100, 600))], ids=len)
def test_no_number_comes_twice(lowers: list[int]) -> None:
    """Whatever is made up, nested in a branch or too big."""
    numbers = Numbers(UPPER, lowers)
    devices = {UPPER, *lowers, NESTED, NESTED + 1}
    found = [numbers.of(device, ino) for device in devices for ino in (1, 2, (1 << 48) - 1)]
    found += [numbers.make_up(), numbers.make_up()]
    assert None not in found
    assert len(set(found)) == len(found)
    assert max(number for number in found if number is not None) < 1 << 64
    assert numbers.of(lowers[0], (1 << 64) - 1) is None
