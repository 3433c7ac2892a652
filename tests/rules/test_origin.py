"""The kernel's encoding of origins and link counts. The values here were written by Linux 6.18 (ext4, tmpfs)."""

from __future__ import annotations

import pytest

from pyunion.union import origin
from pyunion.union.origin import Origin

# `getfattr -e hex -n trusted.overlay.origin` of copies that the kernel made
EXT4 = bytes.fromhex("00fb1d00010000000000000000000000000000000048e92100d8e94d88")
UPPER_DIRECTORY = bytes.fromhex("00fb1d040100000000000000000000000000000000ee482200277cbb7b")


@pytest.mark.parametrize(("value", "fid"), [(EXT4, "48e92100d8e94d88"), (UPPER_DIRECTORY, "ee482200277cbb7b")])
def test_what_the_kernel_wrote_is_understood(value: bytes, fid: str) -> None:
    assert origin.decode(value) == Origin(1, bytes(16), bytes.fromhex(fid))


def test_what_is_written_is_what_the_kernel_would_write() -> None:
    assert origin.encode(Origin(1, bytes(16), bytes.fromhex("48e92100d8e94d88"))) == EXT4
    assert origin.index_name(EXT4) == b"00fb1d00010000000000000000000000000000000048e92100d8e94d88"


@pytest.mark.parametrize(
    "value",
    [b"", b"\0", EXT4[:20], b"\x01" + EXT4[1:], b"\0\xfa" + EXT4[2:], EXT4[:3] + b"\x01" + EXT4[4:],
     EXT4[:3] + b"\x80" + EXT4[4:], EXT4[:-1]],
    ids=["empty", "short", "cut header", "newer version", "other magic", "other endian", "unknown flag", "cut handle"],
)  # fmt: skip
def test_anything_else_is_an_unknown_origin(value: bytes) -> None:
    assert origin.decode(value) is None


def test_link_counts() -> None:
    assert origin.link_offset(b"U-1", upper_links=3, lower_links=2) == -1
    assert origin.link_offset(b"U+2", upper_links=3, lower_links=9) == 2
    assert origin.link_offset(b"L+0", upper_links=2, lower_links=5) == 3
    assert origin.from_upper(-1) == b"U-1"
    assert origin.from_lower(0) == b"L+0"


@pytest.mark.parametrize("value", [b"", b"U", b"1", b"X+1", b"U1", b"U+", b"U+x", b"U--1", b"U-3"])
def test_a_count_that_cannot_be_is_none(value: bytes) -> None:
    assert origin.link_offset(value, upper_links=3, lower_links=2) is None
