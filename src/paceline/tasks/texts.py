"""Instruction tuning data: templates, tokens, masks, and the resulting task.

A template converts a record to a prompt that ends where the response begins. Prompt and response are tokenised
separately, truncated to a common length, and terminated by the end symbol if there is room. The model predicts the next
token at each position; only positions whose next token belongs to the response (or is the end) are scored, unless the
prompt is scored as well. Texts are padded on the left: inputs by -1, targets by -100.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.core.errors import ConfigError, DataFormatError
from paceline.core.random import torch_rng
from paceline.core.task import Arrays, Part, Task

__all__ = ["InstructionRecord", "InstructionTask", "Layout", "Tokens", "encode", "instruction_task", "prompt", "token_loss"]

Layout = Literal["alpaca", "plain"]
PAD, UNSCORED, MULTIPLE = -1, -100, 8
_ASKED = "Write a response that appropriately completes the request."
ALPACA = f"Below is an instruction that describes a task. {_ASKED}"
ALPACA_WITH_INPUT = f"Below is an instruction that describes a task, paired with an input that provides further context. {_ASKED}"
"""Headers of Alpaca's template (Taori et al., 2023): models tuned with it expect these words."""


@dataclass(frozen=True)
class InstructionRecord:
    """An instruction, its context, and the desired response; `kind` is its category."""

    instruction: str
    response: str
    context: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Tokens:
    """A tokeniser.

    Args:
        encode: text -> codes.
        end: code of the end symbol.
        count: number of symbols.
    """

    encode: Callable[[str], list[int]]
    end: int
    count: int


def prompt(record: InstructionRecord, layout: Layout = "alpaca") -> str:
    """Return the text before the response: by Alpaca's template, or on one line."""
    if layout == "plain":
        return f"{record.instruction}: {record.context}\n" if record.context else f"{record.instruction}\n"
    about = f"### Input:\n{record.context}\n\n" if record.context else ""
    head = ALPACA_WITH_INPUT if record.context else ALPACA
    return f"{head}\n\n### Instruction:\n{record.instruction}\n\n{about}### Response:\n"


def encode(
    records: Sequence[InstructionRecord], tokens: Tokens, length: int, layout: Layout = "alpaca", train_on_inputs: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs [N, T], targets [N, T] and the record of each row [N] (int64).

    Records without scored tokens are omitted: those whose prompt alone is longer than `length` tokens.

    Args:
        records: the records.
        tokens: tokeniser.
        length: maximum number of tokens of prompt and response together.
        layout: template, ``alpaca`` or ``plain``.
        train_on_inputs: score the prompt as well.

    Raises:
        DataFormatError: all prompts are too long.
    """
    rows: list[tuple[list[int], list[int]]] = []
    kept = []
    for number, record in enumerate(records):
        asked = tokens.encode(prompt(record, layout))
        ids = (asked + tokens.encode(record.response))[:length]
        if len(ids) < length:
            ids.append(tokens.end)
        labels = ids if train_on_inputs else [UNSCORED] * min(len(asked), len(ids)) + ids[len(asked) :]
        if any(label >= 0 for label in labels[1:]):
            rows.append((ids[:-1], labels[1:]))
            kept.append(number)
    if not rows:
        raise DataFormatError(f"all {len(records)} prompts are longer than length={length} tokens; raise length")
    width = -(-max(len(x) for x, _ in rows) // MULTIPLE) * MULTIPLE
    x = torch.tensor([[PAD] * (width - len(a)) + a for a, _ in rows])
    y = torch.tensor([[UNSCORED] * (width - len(b)) + b for _, b in rows])
    return x, y, torch.tensor(kept)


def token_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over scored targets, of scores [N, symbols, T] and targets [N, T]."""
    return F.cross_entropy(scores, targets, ignore_index=UNSCORED)


@dataclass(frozen=True, kw_only=True)
class InstructionTask(Task):
    """Task of instructions, evaluated by kind: ``part_i_loss`` is that of the i-th owner, which is the i-th kind."""

    def parts(self) -> Sequence[Part]:
        """Return the test rows of each kind."""
        assert self.test.owner is not None
        return [(torch.nonzero(self.test.owner == kind).flatten(), None) for kind in range(len(self.test.owners))]


def instruction_task(
    name: str,
    records: Sequence[InstructionRecord],
    tokens: Tokens,
    model: Callable[[], nn.Module],
    *,
    length: int,
    layout: Layout = "alpaca",
    train_on_inputs: bool = False,
    held: int = 10,
    limit: int | None = None,
    lr: float = 3e-4,
    batch_size: int = 8,
    notes: str = "",
) -> InstructionTask:
    """Return a task with `held` test records of each kind and at most `limit` training records, drawn with a fixed seed.

    Args:
        name: name of the task.
        records: all records, with kinds, which partitioners use as labels.
        tokens: tokeniser.
        model: builds a new module; seeded by the caller.
        length: maximum number of tokens of prompt and response together.
        layout, train_on_inputs: see `encode`.
        held, limit: records per kind.
        lr, batch_size: defaults.
        notes: one-line description.

    Raises:
        ConfigError: a value is out of range.
        DataFormatError: a kind has too few records.
    """
    if length < 2 or held < 1 or (limit is not None and limit < 1):
        raise ConfigError(f"length={length} must be at least 2, and held={held} and limit={limit} at least 1")
    x, y, kept = encode(records, tokens, length, layout, train_on_inputs)
    kinds = sorted({record.kind for record in records})
    owner = torch.tensor([kinds.index(records[i].kind) for i in kept.tolist()])
    test, train = [], []
    for kind, label in enumerate(kinds):
        rows = torch.nonzero(owner == kind).flatten()
        rows = rows[torch.randperm(len(rows), generator=torch_rng(0, "held", label))]
        if len(rows) <= held:
            raise DataFormatError(f"{label!r} has {len(rows)} records of at most {length} tokens; it needs more than held={held}")
        test.append(rows[:held])
        train.append(rows[held:] if limit is None else rows[held : held + limit])
    arrays = Arrays(x, y, owner, kinds)
    return InstructionTask(
        name=name,
        train=arrays.subset(torch.cat(train)),
        test=arrays.subset(torch.cat(test)),
        model=model,
        num_classes=tokens.count,
        loss=token_loss,
        lr=lr,
        batch_size=batch_size,
        notes=notes,
    )
