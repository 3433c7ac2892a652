"""The pure rules of pyunion.union: marks, redirects, merging. No file system is involved."""

from __future__ import annotations

import stat

import pytest

from pyunion.union import marks
from pyunion.union.merge import Kind, kind_of, merge_listings


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        (b"user.note", b"user.note"),
        (b"trusted.overlay.opaque", None),
        (b"trusted.overlay.overlay.opaque", b"trusted.overlay.opaque"),
        (b"trusted.overlay.overlay.overlay.x", b"trusted.overlay.overlay.x"),
        (b"trusted.overlayfoo", b"trusted.overlayfoo"),
        (b"user.overlay.opaque", b"user.overlay.opaque"),  # the other namespace is an ordinary one
    ],
)
def test_an_xattr_shows_with_one_level_of_escape_removed(stored: bytes, shown: bytes | None) -> None:
    assert marks.visible_name(stored, marks.TRUSTED) == shown
    if shown is not None:
        assert marks.stored_name(shown, marks.TRUSTED) == stored


def test_copy_up_leaves_marks_behind_and_takes_escaped_ones_along() -> None:
    assert marks.is_mark(b"trusted.overlay.redirect", marks.TRUSTED)
    assert not marks.is_mark(b"trusted.overlay.overlay.redirect", marks.TRUSTED)
    assert not marks.is_mark(b"user.x", marks.TRUSTED)


@pytest.mark.parametrize("value", [b"name", b"/a", b"/a/b/c", b"...", b"a b", b"\xff"])
def test_a_redirect_is_a_name_or_an_absolute_path(value: bytes) -> None:
    assert marks.valid_redirect(value)


@pytest.mark.parametrize("value", [b"", b"/", b"a/b", b"..", b".", b"/a/../b", b"/a//b", b"/a/", b"/.", b"a\0b"])
def test_a_redirect_that_could_lead_elsewhere_is_refused(value: bytes) -> None:
    assert not marks.valid_redirect(value)


def test_a_redirect_replaces_the_component_that_answered() -> None:
    assert marks.next_path(b"new", b"old", 0, b"") == b"old"
    assert marks.next_path(b"/a/new/c", b"old", 3, b"/c") == b"/a/old/c"
    assert marks.next_path(b"/a/new/c", b"/x/y", 3, b"/c") == b"/x/y/c"


def test_kinds() -> None:
    assert kind_of(stat.S_IFCHR | 0o600, 0) is Kind.WHITEOUT
    assert kind_of(stat.S_IFCHR | 0o600, 0x103) is Kind.OTHER
    assert kind_of(stat.S_IFBLK | 0o600, 0) is Kind.OTHER
    assert kind_of(stat.S_IFDIR | 0o700, 0) is Kind.DIRECTORY


def test_the_topmost_entry_wins_and_a_whiteout_hides_what_is_below_it_only() -> None:
    top = [(b"gone", Kind.WHITEOUT), (b"both", Kind.OTHER), (b"top", Kind.DIRECTORY)]
    middle = [(b"gone", Kind.OTHER), (b"both", Kind.WHITEOUT), (b"late", Kind.WHITEOUT)]
    bottom = [(b"late", Kind.OTHER), (b"low", Kind.OTHER), (b"top", Kind.DIRECTORY)]
    assert merge_listings([(0, top), (1, middle), (2, bottom)]) == {b"both": 0, b"top": 0, b"low": 2}
