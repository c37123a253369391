"""Text of a file from its bytes: the encoding is recognised where the bytes determine it, and otherwise asked for."""

from __future__ import annotations

import codecs
from pathlib import Path

from paceline.core.errors import ConfigError, DataFormatError

__all__ = ["decode", "read_text"]

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark is a prefix of this one
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
"""Byte order marks and the encodings that they announce."""

_BINARY = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook; export it as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook; export it as CSV"),
    (b"\x1f\x8b", "compressed with gzip; decompress it"),
    (b"PAR1", "a Parquet file; write parquet:PATH"),
    (b"\x93NUMPY", "a NumPy file; write numpy:PATH"),
    (b"SQLite format 3", "an SQLite database; export the table as CSV"),
)
"""First bytes of files that are often given in place of text."""


def read_text(path: Path, encoding: str = "") -> tuple[str, str]:
    """Return a file's text and the name of its encoding.

    Args:
        path: the file.
        encoding: encoding to use; empty to recognise it: by a byte order mark, else UTF-8.

    Raises:
        DataFormatError: the file cannot be read, is binary, or its encoding is in doubt.
        ConfigError: unknown encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataFormatError(f"{path} cannot be read: {error.strerror or error}") from error
    return decode(content, str(path), encoding)


def decode(content: bytes, name: str, encoding: str = "") -> tuple[str, str]:
    """Return the text of bytes, and the name of the encoding; see `read_text`.

    Example:
        >>> decode("\\ufeffa,b".encode("utf-16-le"), "t.csv")
        ('a,b', 'utf-16-le')
    """
    for start, what in _BINARY:
        if content.startswith(start):
            raise DataFormatError(f"{name}: not a text file but {what}")
    marked = next(((mark, known) for mark, known in _MARKS if content.startswith(mark)), None)
    if marked is not None and not encoding:
        content, encoding = content[len(marked[0]) :], marked[1]
    elif not encoding:
        _check_plain(content, name)
        encoding = "utf-8"
    try:
        return content.decode(encoding).removeprefix("\ufeff"), encoding
    except LookupError:
        raise ConfigError(f"encoding={encoding!r} is unknown; write one such as utf-8, utf-16, latin-1 or cp1252") from None
    except UnicodeError as error:
        raise DataFormatError(f"{name}: not valid {encoding} ({error}); name the encoding of the file with encoding=") from None


def _check_plain(content: bytes, name: str) -> None:
    """Raise `DataFormatError` for bytes without a byte order mark that are not UTF-8."""
    nul = content[:4096].count(0)
    if nul:
        even, odd = content[:4096:2].count(0), content[1:4096:2].count(0)
        wide = {(True, False): "utf-16-be", (False, True): "utf-16-le"}.get((even > 0, odd > 0))
        if wide and nul > len(content[:4096]) // 4:
            raise DataFormatError(f"{name}: probably {wide}, without a byte order mark; confirm it with encoding={wide}")
        raise DataFormatError(f"{name}: contains NUL bytes, so it is not a text file; check what it is")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataFormatError(
            f"{name}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8; name the encoding with encoding=, "
            "such as latin-1 or cp1252 for files of Western European programs"
        ) from None
