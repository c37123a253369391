"""The task of a data set as read: tensors, and the loss, metrics and model that suit its targets.

Class indices are learnt by cross entropy; a class of each pixel by cross entropy without the pixels of value 255; a number by
the squared error of standardised targets, with metrics in the unit of the target; several labels by binary cross entropy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from paceline.core.errors import ConfigError
from paceline.core.losses import named_loss
from paceline.core.random import numpy_rng
from paceline.core.task import Arrays, Task
from paceline.core.wording import setting
from paceline.data.conform import described
from paceline.data.schema import Schema
from paceline.models import build, model_options
from paceline.models.card import Gives, Takes, find_card, fitting, suits
from paceline.tasks.images import channels_first, measured
from paceline.tasks.scaling import with_scaling

if TYPE_CHECKING:
    from paceline.data.raw import Array, Part, RawData

__all__ = ["IGNORED", "Content", "Defaults", "apart", "make_task"]

Content = Literal["image", "text", "table", "series"]
Goal = Literal["class", "number", "mask", "symbols", "labels"]

IGNORED = 255
"""Value of a mask's pixels that do not count."""

_TAKES: dict[Content, Takes] = {"image": "picture", "text": "text", "table": "table", "series": "series"}
_GIVES: dict[Goal, Gives] = {"mask": "pixel", "symbols": "position"}
_LOSS: dict[Goal, str] = {"number": "mse", "labels": "bce"}
_METRICS: dict[Goal, tuple[str, ...]] = {
    "number": ("r2", "rmse", "mae"),
    "mask": ("dice", "iou"),
    "labels": ("multilabel-f1", "hamming"),
    "symbols": ("perplexity",),
}
_LR = {"lstm": 1.0, "char_model": 0.3, "text_encoder": 0.1, "word_bag": 5.0, "gru": 0.2, "unet": 0.2, "resnet18": 0.1}
_NUMBER_LR = 0.02
_TABLE_LR = {"mlp": 0.1}
"""Learning rates for classes of tables, where they differ."""


@dataclass(frozen=True)
class Defaults:
    """What a named data set or a kind of file determines of its task.

    Args:
        content: of a sample.
        batch_size: of local training.
        in_time: whether a client's samples follow each other in time.
        lr: of local training; by default one that suits the model.
        metrics: names of metrics; by default those that suit the targets.
    """

    content: Content = "image"
    batch_size: int = 20
    in_time: bool = False
    lr: float | None = None
    metrics: tuple[str, ...] = ()


def apart(options: Mapping[str, Any], model: str | None) -> tuple[int | None, dict[str, Any], dict[str, Any]]:
    """Return the limit, the options of the model and those of the data.

    Raises:
        ConfigError: the limit is no whole number of at least 1.
    """
    rest = dict(options)
    limit = rest.pop("limit", None)
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise ConfigError(f"limit={limit!r} must be a whole number of at least 1")
    known = set(model_options(model)) if model is not None else set()
    return limit, {k: v for k, v in rest.items() if k in known}, {k: v for k, v in rest.items() if k not in known}


def make_task(
    name: str,
    model: str,
    options: Mapping[str, Any],
    defaults: Defaults,
    raw: RawData,
    about: str,
    limit: int | None,
    seed: int,
) -> Task:
    """Return the task of a data set.

    Args:
        name: of the task.
        model: name of its model.
        options: of the model.
        defaults: see `Defaults`.
        raw: the samples.
        about: a line for people.
        limit: the most training samples to keep, drawn at random.
        seed: of this choice.

    Raises:
        ConfigError: the model does not fit samples or targets.
    """
    assert raw.test is not None
    schema = None if defaults.content == "series" else described(raw, defaults.content)
    goal = _goal(schema, raw.train.y, defaults.content)
    _check_model(name, model, defaults.content, goal)
    train, test = raw.train, raw.test
    if limit is not None and limit < len(train):
        train = train.take(np.sort(numpy_rng(seed, "limit", name).permutation(len(train))[:limit]))
    x, x_test, schema = _inputs(schema, train, test)
    scaling = (schema.target.mean, schema.target.deviation) if goal == "number" and schema is not None else (0.0, 1.0)
    make = _maker(model, x, raw, goal, schema, options)
    plain = model.replace("-", "_")
    described_by = {} if schema is None else {"schema": schema.to_json()}
    return Task(
        name=name,
        train=Arrays(x, _targets(train.y, goal, scaling), _owner(train), raw.owners),
        test=Arrays(x_test, _targets(test.y, goal, scaling), _owner(test), raw.owners),
        model=make,
        num_classes=0 if goal in ("number", "labels") else len(raw.classes),
        loss=named_loss(_LOSS.get(goal, "cross_entropy"), IGNORED if goal == "mask" else None),
        lr=defaults.lr or _rate(plain, defaults.content, goal),
        batch_size=defaults.batch_size,
        notes=about,
        info={"model": plain, **described_by, **({"read": "\n".join(raw.notes)} if raw.notes else {})},
        classes=raw.classes,
        in_time=defaults.in_time and bool(raw.owners),
        overlap=raw.overlap,
        metrics=defaults.metrics or _METRICS.get(goal, ()),
        ignore_index=IGNORED if goal == "mask" else None,
        target_scaling=scaling,
    )


def _rate(model: str, content: Content, goal: Goal) -> float:
    """Return the learning rate that suits a model."""
    if goal == "number":
        return _NUMBER_LR
    return (_TABLE_LR if content == "table" else {}).get(model, _LR.get(model, 0.05))


def _goal(schema: Schema | None, y: Array, content: Content) -> Goal:
    """Return what is predicted, by the schema or, without one, by the form of the targets."""
    if y.ndim == 2 and content == "text":
        return "labels" if y.dtype.kind == "f" else "symbols"
    if schema is not None:
        return schema.target.kind
    return "class" if y.dtype.kind in "iu" else "number"


def _check_model(name: str, model: str, content: Content, goal: Goal) -> None:
    """Raise `ConfigError` if a reference model takes other samples or gives other scores; users' own are tried later."""
    card = find_card(model)
    takes, gives = _TAKES[content], _GIVES.get(goal, "sample")
    if card is None or (suits(card, takes) and card.gives == gives):
        return
    what = {"pixel": "a score of each pixel", "position": "scores at each position", "sample": "one row of scores"}[gives]
    raise ConfigError(
        f"model {model} does not fit {name}, whose samples are {content}{'' if content == 'series' else 's'} and need {what}; use "
        f"{setting('model', ' or '.join(fitting(takes, gives)))}, or your own: {setting('model', 'package.module:Name')}"
    )


def _maker(
    model: str, x: Tensor, raw: RawData, goal: Goal, schema: Schema | None, options: Mapping[str, Any]
) -> Callable[[], nn.Module]:
    """Return what builds the model, which is tried without allocating it: one that does not fit is told of now."""
    outputs = len(raw.classes) or (raw.train.y.shape[1] if raw.train.y.ndim > 1 else 1)
    codes: dict[str, Any] = {"symbols": schema.text.symbols} if schema is not None and schema.text is not None else {}
    if schema is not None and schema.columns:
        codes = {"categories": tuple(column.width if column.kind == "category" else 0 for column in schema.columns)}
    make: Callable[[], nn.Module] = partial(build, model, shape=tuple(x.shape[1:]), num_classes=outputs, **codes, **options)
    if schema is not None and schema.standardize == "federated":
        make = with_scaling(make, schema)
    with torch.device("meta"):
        make()
    return make


def _owner(part: Part) -> Tensor | None:
    return None if part.owner is None else torch.from_numpy(part.owner)


def _targets(y: Array, goal: Goal, scaling: tuple[float, float]) -> Tensor:
    if goal == "number":
        return torch.from_numpy(((y.astype(np.float64) - scaling[0]) / scaling[1]).astype(np.float32))
    return torch.from_numpy(y.astype(np.float32 if goal == "labels" else np.int64, copy=False))


def _inputs(schema: Schema | None, train: Part, test: Part) -> tuple[Tensor, Tensor, Schema | None]:
    """Return the inputs of both parts as tensors, and the schema with the scaling of pictures."""
    if schema is None or schema.picture is None:
        return torch.from_numpy(train.x), torch.from_numpy(test.x), schema
    top = schema.picture.top
    x, x_test = channels_first(train.x, top), channels_first(test.x, top)
    picture = measured(schema.picture, x)
    shift, scale = (torch.tensor(values).view(1, -1, 1, 1) for values in (picture.mean, picture.deviation))
    return x.sub_(shift).div_(scale), x_test.sub_(shift).div_(scale), schema.model_copy(update={"picture": picture})
