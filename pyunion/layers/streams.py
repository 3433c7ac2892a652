"""Bytes on their way: digests of what passes, compression and its reverse, with memory of constant size.

Owns which compressions there are. zstandard is imported when it is needed.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from typing import Any, Protocol, cast

from pyunion.errors import PyunionError

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_WINDOW = 1 << 27  # the largest that a frame may ask for, as zstd(1) has it
_GZIP_LEVEL, _ISAL_LEVEL, _ZSTD_LEVEL = 6, 3, 3
_BLOCK = 1 << 20  # what is compressed at once; headers of members are much smaller
COMPRESSIONS = ("gzip", "zstd", "none")


class Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


class ClosingSink(Sink, Protocol):
    def close(self) -> None: ...


class Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


class HashingWriter:
    """Counts and digests what is written on."""

    def __init__(self, file: Sink) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes, /) -> int:
        self._hash.update(data)
        self.size += len(data)
        self._file.write(data)
        return len(data)

    def flush(self) -> None:
        """For compressors; nothing is kept back here."""

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


class HashingReader(io.RawIOBase):
    """Counts and digests what is read."""

    def __init__(self, file: Source) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._hash.update(data)
        self.size += len(data)
        return len(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def compressor(name: str, file: HashingWriter) -> ClosingSink:
    """A file that compresses what is written to it; the same bytes for the same input. Close it to end the stream."""
    if name == "gzip":
        return io.BufferedWriter(_gzip(file), _BLOCK)
    if name == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).stream_writer(cast(Any, file), closefd=False)
    assert name == "none"
    return _Plain(file)


def _gzip(file: HashingWriter) -> Any:
    """By ISA-L, which takes a seventh of zlib's time for a few percent more bytes, where there is a build of it."""
    try:
        from isal import igzip
    except ImportError:
        return gzip.GzipFile("", "wb", _GZIP_LEVEL, cast(Any, file), mtime=0)
    return cast(Any, igzip.IGzipFile)("", "wb", _ISAL_LEVEL, cast(Any, file), mtime=0)


class _Plain:
    def __init__(self, file: HashingWriter) -> None:
        self.write = file.write

    def close(self) -> None:
        pass


def decompressed(file: io.BufferedReader[Any]) -> Source | None:
    """What a compressed file has to say, by its first bytes and not by its name; None if it is not compressed.

    The file must be at its start. Reading raises PyunionError where it is damaged.
    """
    start = file.peek(4)[:4]
    if start.startswith(_GZIP_MAGIC):
        return _Checked(gzip.GzipFile("", "rb", fileobj=file), (gzip.BadGzipFile, EOFError, zlib.error))
    if start == _ZSTD_MAGIC:
        import zstandard

        plain = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        reader = plain.stream_reader(file, read_across_frames=True, closefd=False)
        return _Checked(reader, (zstandard.ZstdError,))
    return None


class _Checked:
    """Turns what a decompressor complains of into a sentence."""

    def __init__(self, source: Source, complaints: tuple[type[Exception], ...]) -> None:
        self._source = source
        self._complaints = complaints

    def read(self, size: int, /) -> bytes:
        try:
            return self._source.read(size)
        except self._complaints as error:
            raise PyunionError(f"a compressed file is damaged: {error}") from None
