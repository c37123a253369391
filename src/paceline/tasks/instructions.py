"""Instruction tasks: eight synthetic categories for a small character model, and real questions for a real model."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable
from functools import partial

import numpy as np
from torch import nn

from paceline.core.errors import ConfigError
from paceline.core.random import numpy_rng
from paceline.core.task import Task
from paceline.data.sources import find_source
from paceline.data.sources.weights import transformers
from paceline.models.language import language_model
from paceline.models.pretraining import kept, pretrain, with_weights
from paceline.models.transformer import char_model
from paceline.tasks.recipe import task_card
from paceline.tasks.texts import InstructionRecord, Layout, Tokens, encode, instruction_task, token_loss

__all__ = ["CATEGORIES", "characters", "generic", "load_chatterbot", "load_instructions", "records"]

CATEGORIES: dict[str, Callable[[str], str]] = {
    "reverse": lambda word: word[::-1],
    "upper-case": str.upper,
    "count letters": lambda word: str(len(word)),
    "first letter": lambda word: word[0],
    "last letter": lambda word: word[-1],
    "double": lambda word: word + word,
    "sort letters": lambda word: "".join(sorted(word)),
    "spell": " ".join,
}
"""Answer of each instruction for a given word."""

_SYMBOLS = string.printable[:95] + "\n"
_CODES = {symbol: code for code, symbol in enumerate(_SYMBOLS)}


def _codes(text: str) -> list[int]:
    return [_CODES.get(symbol, _CODES["?"]) for symbol in text]


def characters() -> Tokens:
    """Return a tokeniser with one token per printable ASCII character, and a question mark for any other."""
    return Tokens(_codes, len(_SYMBOLS), len(_SYMBOLS) + 1)


def _word(rng: np.random.Generator) -> str:
    pairs = (rng.choice(list("bcdfghklmnprstvw")) + rng.choice(list("aeiou")) for _ in range(int(rng.integers(1, 4))))
    return "".join(pairs) + str(rng.choice(["", "n", "r", "s", "t"]))


def records(each: int, seed: int = 0) -> list[InstructionRecord]:
    """Return `each` records of every category, about words of two to seven letters."""
    rng = numpy_rng(seed, "instructions")
    asked = ((kind, answer, _word(rng)) for kind, answer in CATEGORIES.items() for _ in range(each))
    return [InstructionRecord(kind, answer(word), word, kind) for kind, answer, word in asked]


def generic(count: int, seed: int = 0) -> list[InstructionRecord]:
    """Return texts for pretraining: words repeated, in capitals, letter by letter, and counts; no instructions."""
    rng = numpy_rng(seed, "generic")
    forms: list[Callable[[str, str], str]] = [
        lambda a, b: f"{a} {a}, {b} {b}.",
        lambda a, b: f"{a} and {b}.",
        lambda a, b: f"{a.upper()} {b}",
        lambda a, b: f"{' '.join(a)}",
        lambda a, b: f"{len(b)} {len(a)}: {b}",
    ]
    return [InstructionRecord("", forms[int(rng.integers(len(forms)))](_word(rng), _word(rng))) for _ in range(count)]


def _small(length: int, texts: int, epochs: int) -> Callable[[], nn.Module]:
    """Return a builder of the character model with weights pretrained once on generic text."""
    tokens = characters()
    make = partial(char_model, shape=(length,), num_classes=tokens.count)

    def train(module: nn.Module) -> object:
        x, y, _ = encode(generic(texts), tokens, length, "plain", train_on_inputs=True)
        return pretrain(module, x, y, epochs=epochs, lr=3e-3, loss=token_loss)

    weights = kept(repr(("char_model", length, texts, epochs, "v1")), make, train)
    return partial(with_weights, make, weights, new_head=False)


def _pretrained(name: str) -> tuple[Tokens, Callable[[], nn.Module]]:
    """Return the tokeniser and the builder of a fetched model.

    Raises `MissingDataError` if it has not been fetched, `MissingExtraError` if its library is missing.
    """
    folder = find_source(name).cached()
    build = language_model(folder)
    tokenizer = transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def codes(text: str) -> list[int]:
        found: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return found

    return Tokens(codes, int(tokenizer.eos_token_id), len(tokenizer)), build


@task_card("eight categories of made-up instructions about words", "char_model")
def load_instructions(
    model: str | None = None,
    seed: int = 0,
    each: int = 60,
    held: int = 10,
    length: int = 48,
    train_on_inputs: bool = False,
    texts: int = 2000,
    epochs: int = 4,
) -> Task:
    """Return the eight `CATEGORIES` for a small character model pretrained on generic text.

    Args:
        model: ``char_model``.
        seed: seed of the run; the records are always the same.
        each, held: records per category, for training and for tests.
        length, train_on_inputs: see `encode`.
        texts, epochs: of the pretraining.

    Raises:
        ConfigError: another model.
    """
    if model not in (None, "char_model"):
        raise ConfigError(f"model {model} does not fit instructions; use char_model")
    return instruction_task(
        "instructions",
        records(each + held),
        characters(),
        _small(length, texts, epochs),
        length=length,
        layout="plain",
        train_on_inputs=train_on_inputs,
        held=held,
        lr=3e-3,
        batch_size=16,
        notes="eight made-up categories of instructions about words",
    )


@task_card("questions and answers by topic", "smollm2-135m", "chatterbot")
def load_chatterbot(
    model: str | None = None,
    seed: int = 0,
    length: int = 96,
    held: int = 5,
    limit: int | None = 100,
    topics: int | None = None,
    layout: Layout | None = None,
    train_on_inputs: bool = False,
) -> Task:
    """Return questions and answers by topic, for a pretrained language model; topics with few of them are omitted.

    Args:
        model: ``smollm2-135m``, which is fetched like data, or ``char_model``.
        seed: seed of the run; the selection of records is always the same.
        length: maximum number of tokens of question, answer and template together; longer answers are truncated.
        held, limit: records per topic, for tests and (at most) for training.
        topics: number of topics, the largest first; None selects all with at least four times `held` records.
        layout: template; ``alpaca``, or ``plain`` for char_model, by default.
        train_on_inputs: score the questions as well.
    """
    name = model or "smollm2-135m"
    raw = find_source("chatterbot").load()
    if name == "char_model":
        tokens, build = characters(), _small(length, 2000, 4)
    else:
        tokens, build = _pretrained(name)
    counts = Counter(raw.train.y.tolist())
    chosen = [code for code, count in counts.most_common(topics) if count >= 4 * held]
    rows = zip(raw.train.x.tolist(), raw.train.y.tolist(), strict=True)
    return instruction_task(
        "chatterbot",
        [InstructionRecord(asked, answered, kind=raw.owners[code]) for (asked, answered), code in rows if code in chosen],
        tokens,
        build,
        length=length,
        layout=layout or ("plain" if name == "char_model" else "alpaca"),
        train_on_inputs=train_on_inputs,
        held=held,
        limit=limit,
        notes=f"questions and answers by topic, for {name}",
    )
