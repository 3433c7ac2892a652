"""Mappings of owners: what is shown is what is stored, the other way round, as far as it can be."""

from __future__ import annotations

from errno import EOVERFLOW

import pytest

from pyunion.union.ids import NO_ID, NOT_MAPPED, Mapping, Owners, Range

MAPPING = Mapping((Range(shown=0, stored=100000, length=1000),))


@pytest.mark.parametrize(("stored", "shown"), [(100000, 0), (100999, 999)])
def test_a_range_is_shifted(stored: int, shown: int) -> None:
    assert MAPPING.shown(stored) == shown
    assert MAPPING.stored(shown) == stored


@pytest.mark.parametrize("number", [0, 5, 99999, 101000, NO_ID])
def test_what_is_in_no_range_is_nobodys(number: int) -> None:
    assert MAPPING.shown(number) == NO_ID


@pytest.mark.parametrize("number", [1000, 100000, 65534, NO_ID])
def test_nothing_is_stored_for_what_is_in_no_range(number: int) -> None:
    with pytest.raises(OSError, match="in no range") as caught:
        MAPPING.stored(number)
    assert caught.value.errno == EOVERFLOW


@pytest.mark.parametrize("number", [1000, 99999, 65534])
def test_what_is_in_no_range_can_be_as_stored(number: int) -> None:
    lenient = MAPPING._replace(others_as_stored=True)
    assert lenient.shown(number) == lenient.stored(number) == number
    assert lenient.shown(100000) == 0


@pytest.mark.parametrize("value", [b"", b"\0\0\0\3", bytes(20), b"\0\0\0\2" + bytes(20), b"\0\0\0\3" + bytes(16)])
def test_what_are_no_file_capabilities_stays_as_it_is(value: bytes) -> None:
    owners = Owners(MAPPING, MAPPING)
    assert owners.capabilities_shown(value) == value
    assert owners.capabilities_stored(value) == value


def test_squashing_shows_one_and_changes_none() -> None:
    mapping = Mapping(squash_to=1000)
    assert (mapping.shown(0), mapping.shown(77)) == (1000, 1000)
    assert mapping.stored(5) == -1


def test_an_id_that_our_namespace_does_not_have_is_shown_as_our_own() -> None:
    mapping = Mapping(overflow=65534, own=0)
    assert mapping.shown(65534) == 0
    assert mapping.shown(1) == 1


def test_without_mappings_there_is_nothing_to_do() -> None:
    assert NOT_MAPPED.all_as_stored
    assert not Owners(uids=Mapping(overflow=65534)).all_as_stored
