"""Texts to be continued: each file or sub-folder is a client, and a model predicts the next byte of UTF-8 at each position."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paceline.core.errors import ConfigError, DataFormatError
from paceline.data.decode import read_text
from paceline.data.pictures import hidden
from paceline.data.raw import Array, Part, RawData
from paceline.data.schema import Schema, Target, Text

__all__ = ["BYTES", "read_text_files"]

_ENDS = {".txt", ".text", ".md"}

BYTES = tuple(chr(code) if 32 < code < 127 else f"0x{code:02x}" for code in range(256))
"""Names of the 256 symbols."""


def read_text_files(folder: Path, length: int = 128, test: float = 0.2, encoding: str = "") -> RawData:
    """Read texts as windows of `length` bytes (uint8 [N, length]) and the byte after each of them (int64 [N, length]).

    A client is a file, or a sub-folder with all files inside. The last `test` of each client's windows are for tests; windows do
    not overlap. A client with fewer than two windows has only training samples, and texts shorter than a window are left out.

    Args:
        folder: a folder of texts, or one text.
        length: bytes of a window, 2 to 65536.
        test: fraction of each client's windows for tests.
        encoding: encoding of the files; recognised by default.

    Raises:
        ConfigError: an option is out of range.
        DataFormatError: there is no text that is long enough.
    """
    if not 2 <= length <= 65536 or not 0 < test < 1:
        raise ConfigError(f"length={length} must be from 2 to 65536 bytes, and test={test} above 0 and below 1")
    clients = _clients(folder)
    if not clients:
        raise DataFormatError(f"{folder}: contains no texts ({', '.join(sorted(_ENDS))})")
    owners: list[str] = []
    short = 0
    parts: tuple[list[Array], list[Array]] = ([], [])
    codes: tuple[list[Array], list[Array]] = ([], [])
    for name, paths in clients.items():
        found = [_windows(read_text(path, encoding)[0].encode(), length) for path in paths]
        short += sum(not len(windows) for windows in found)
        windows = np.concatenate(found)
        if not len(windows):
            continue
        held = min(round(len(windows) * test), len(windows) - 1)
        for part, owner, rows in zip(parts, codes, np.split(windows, [len(windows) - held]), strict=True):
            part.append(rows)
            owner.append(np.full(len(rows), len(owners), dtype=np.int64))
        owners.append(name)
    if not sum(map(len, parts[1])):
        raise DataFormatError(f"{folder}: no text has two windows of {length + 1} bytes; lower length=, or add texts")
    made = []
    counts = np.bincount(np.concatenate(codes[0]))
    for part, owner in zip(parts, codes, strict=True):
        rows = np.concatenate(part)
        made.append(Part(rows[:, :-1].copy(), rows[:, 1:].astype(np.int64), np.concatenate(owner)))
    notes = [f"client {name}: {count} windows" for name, count in zip(owners, counts, strict=True)][:20]
    notes += [f"left out {short} texts that are shorter than {length + 1} bytes; change length="] if short else []
    schema = Schema(content="text", text=Text(length=length, symbols=256), target=Target(classes=BYTES))
    return RawData(made[0], made[1], BYTES, tuple(owners), schema=schema, notes=tuple(notes))


def _clients(folder: Path) -> dict[str, list[Path]]:
    """Return the texts of each client by its name."""
    if folder.is_file():
        return {folder.stem: [folder]}
    found: dict[str, list[Path]] = {}
    for entry in sorted(path for path in folder.iterdir() if not hidden(path)):
        inside = sorted(entry.rglob("*")) if entry.is_dir() else [entry]
        texts = [path for path in inside if path.is_file() and path.suffix.lower() in _ENDS and not hidden(path)]
        if texts:
            found[entry.name if entry.is_dir() else entry.stem] = texts
    return found


def _windows(text: bytes, length: int) -> Array:
    """Return windows of length + 1 bytes, each beginning with the last byte of the one before."""
    codes = np.frombuffer(text, dtype=np.uint8)
    starts = np.arange(0, len(codes) - length, length)
    windows: Array = codes[starts[:, None] + np.arange(length + 1)]
    return windows
