"""Sentences are one line of visible characters, whatever file names are in them."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from pyunion.errors import printable


def test_ordinary_text_stays() -> None:
    assert printable("lower branch /srv/Größe 大小 'a\\b'") == "lower branch /srv/Größe 大小 'a\\b'"


def test_what_is_not_visible_is_escaped() -> None:
    assert printable(os.fsdecode(b"a\n\t\x1b[0m\xff")) == r"a\n\t\x1b[0m\xff"
    assert printable("\u202egpj.exe") == r"\u202egpj.exe"


@given(st.binary())
def test_any_name_becomes_one_line_that_can_be_written(name: bytes) -> None:
    text = printable(os.fsdecode(name))
    assert text.isprintable()
    assert text.encode("utf-8").decode("utf-8") == text
