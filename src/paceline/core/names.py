"""Names of folders and runs that every system takes, made from whatever text a name is given as."""

from __future__ import annotations

import hashlib
import re
import secrets
import unicodedata
from collections.abc import Sequence

__all__ = ["LONGEST", "is_name", "run_id", "safe_name", "safe_names"]

LONGEST = 200
"""Bytes of the longest name: file systems take 255, and what lies beside it adds to the name."""

_MARK = 9
"""Bytes of a dash and the hash by which shortened names differ."""


def safe_name(text: str, most: int = 120) -> str:
    """Return `text` as a name of at most `most` bytes: letters, digits, ``_.=+-``, and no dot in front.

    What is too long is cut, and ends with a hash of the whole, so that different texts stay different.

    >>> safe_name("clip:network=true-mnist-5k-s0"), safe_name("my run (1)"), safe_name("...")
    ('clip-network=true-mnist-5k-s0', 'my-run-1', 'run')
    """
    cleaned = re.sub(r"[^\w.=+-]+", "-", unicodedata.normalize("NFC", text)).strip("-.") or "run"
    if len(cleaned.encode()) <= most:
        return cleaned
    return cleaned.encode()[: most - _MARK].decode(errors="ignore").rstrip("-.") + _mark(text)


def safe_names(texts: Sequence[str], most: int = 120) -> list[str]:
    """Return the names of several texts; those of different texts differ.

    >>> safe_names(["a/b", "a b", "c"])[2]
    'c'
    """
    names = [safe_name(text, most) for text in texts]
    owners: dict[str, set[str]] = {}
    for name, text in zip(names, texts, strict=True):
        owners.setdefault(name, set()).add(text)
    return [
        name if len(owners[name]) == 1 else safe_name(name, most - _MARK) + _mark(text)
        for name, text in zip(names, texts, strict=True)
    ]


def is_name(text: str, most: int = LONGEST) -> bool:
    """Return whether a text from outside can be the name of a folder as it stands."""
    return re.fullmatch(r"[\w=+-][\w.=+-]*", text) is not None and len(text.encode(errors="replace")) <= most


def run_id(name: str) -> str:
    """Return a new id for a run in a folder called `name`: plain ASCII, at most 80 bytes, and never the same twice."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return f"{safe_name(plain, 60)}-{secrets.token_hex(6)}"


def _mark(text: str) -> str:
    return "-" + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[: _MARK - 1]
