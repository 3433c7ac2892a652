"""Mappings of owners: what is shown is what is stored, the other way round, as far as it can be."""

from __future__ import annotations

import pytest

from pyunion.union.ids import NOT_MAPPED, Mapping, Owners, Range


@pytest.mark.parametrize(("stored", "shown"), [(100000, 0), (100999, 999), (101000, 101000), (5, 5)])
def test_a_range_is_shifted_and_the_rest_is_as_stored(stored: int, shown: int) -> None:
    mapping = Mapping((Range(shown=0, stored=100000, length=1000),))
    assert mapping.shown(stored) == shown
    if stored >= 100000:
        assert mapping.stored(shown) == stored


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
