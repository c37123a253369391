"""Portable names of folders and runs, derived from arbitrary text."""

from __future__ import annotations

import hashlib
import re
import secrets
import unicodedata
from collections.abc import Sequence

__all__ = ["LONGEST", "is_name", "run_id", "safe_name", "safe_names"]

LONGEST = 200
"""Maximum length of a name in bytes: file systems permit 255, and suffixes of related files add to it."""

_MARK = 9
"""Bytes of a dash and the hash that distinguishes shortened names."""


def safe_name(text: str, most: int = 120) -> str:
    """Return `text` as a name of at most `most` bytes: letters, digits, ``_.=+-``, without a leading dot.

    Longer texts are truncated and end with a hash of the whole text, so that different texts remain different.

    Example:
        >>> safe_name("clip:network=true-mnist-5k-s0"), safe_name("my run (1)"), safe_name("...")
        ('clip-network=true-mnist-5k-s0', 'my-run-1', 'run')
    """
    cleaned = re.sub(r"[^\w.=+-]+", "-", unicodedata.normalize("NFC", text)).strip("-.") or "run"
    if len(cleaned.encode()) <= most:
        return cleaned
    return cleaned.encode()[: most - _MARK].decode(errors="ignore").rstrip("-.") + _mark(text)


def safe_names(texts: Sequence[str], most: int = 120) -> list[str]:
    """Return the names of several texts; different texts get different names.

    Example:
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
    """Return whether an untrusted text is safe to use as a folder name unchanged."""
    return re.fullmatch(r"[\w=+-][\w.=+-]*", text) is not None and len(text.encode(errors="replace")) <= most


def run_id(name: str) -> str:
    """Return a unique id for a run in a folder called `name`: plain ASCII, at most 80 bytes."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return f"{safe_name(plain, 60)}-{secrets.token_hex(6)}"


def _mark(text: str) -> str:
    return "-" + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[: _MARK - 1]
