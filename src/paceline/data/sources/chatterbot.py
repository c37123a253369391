"""`chatterbot`: English questions and answers by topic, the smallest real instruction data set available in packages.

The first turn of each conversation is the instruction, the second one the response. A client is a topic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from paceline.core.errors import DataFormatError, MissingExtraError
from paceline.data.fetch import Package
from paceline.data.raw import Array, Part, RawData, encode
from paceline.data.sources.source import Source

__all__ = ["CHATTERBOT", "pairs"]

_FILES = "chatterbot_corpus/data/english/*.yml"


def pairs(text: str) -> list[tuple[str, str]]:
    """Return (instruction, response) of each conversation in a file that has a response.

    Raises:
        DataFormatError: the file has another structure.
        MissingExtraError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("PyYAML", "peft") from error
    parsed: Any = yaml.safe_load(text)
    conversations = parsed.get("conversations") if isinstance(parsed, dict) else None
    if not isinstance(conversations, list):
        raise DataFormatError("malformed conversation file: expected a list of conversations, each a list of turns")
    return [
        (str(conversation[0]).strip(), str(conversation[1]).strip())
        for conversation in conversations
        if isinstance(conversation, list) and len(conversation) > 1
    ]


def _decode(files: Mapping[str, bytes], options: Mapping[str, int]) -> dict[str, Array]:
    texts: list[tuple[str, str]] = []
    topics: list[str] = []
    for path, content in sorted(files.items()):
        found = pairs(content.decode("utf-8"))
        texts += found
        topics += [path.rpartition("/")[2].removesuffix(".yml")] * len(found)
    codes, names = encode(topics)
    return RawData(Part(np.array(texts, dtype=np.str_), codes, codes), None, names, names).arrays()


CHATTERBOT = Source(
    "chatterbot",
    "2,025 questions with an answer each, in English, on 21 topics; client = topic",
    "BSD-3-Clause",
    0.3,
    lambda options: (
        Package(
            "wheel",
            "chatterbot-corpus",
            "1.3.3",
            {_FILES: "df1e7ae57c020bb703a03de1393fbcd0839ea7edcbc649b01c4ad89154f0a220"},
        ),
    ),
    _decode,
)
