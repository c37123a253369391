"""Parts of the constructors of `Task`: classes, losses and test sets, as the data and the model have them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.core.checks import built, check_labels, model_dtype, model_maker, takes_classes
from paceline.core.columns import call, first, length, select
from paceline.core.errors import ConfigError, DataError
from paceline.core.generators import drawing
from paceline.core.losses import NamedLoss, scores

__all__ = [
    "QUANTITY_LOSSES",
    "apart",
    "are_indices",
    "classes_in",
    "held_out",
    "maker",
    "owners_of",
    "reading_scores",
    "rows_of",
    "scaling_of",
    "sized",
    "told",
]

QUANTITY_LOSSES = frozenset({"mse", "l1", "huber"})
"""Losses that suit a standardised quantity."""

_FEW = 20
"""Distinct whole numbers up to which a target column is taken for class indices."""


def maker(model: Any) -> tuple[Callable[[], nn.Module], torch.dtype]:
    """Return what builds a module, and the dtype of its floating-point inputs."""
    make = model_maker(model)
    with drawing(0):
        return make, model_dtype(built(make))


def sized(model: Any, inputs: int) -> Callable[[], nn.Module]:
    """Return what builds a module with so many inputs."""
    if not callable(model):
        return model_maker(model)
    return functools.partial(model, inputs)


def classes_in(make: Any, x: Any, y: Any, y_test: Any, loss: Any, wanted: int | None, given: Mapping[str, Any]) -> int:
    """Return the number of classes, 0 for a task without classes."""
    if takes_classes(loss, 1):
        if wanted == 0:
            raise ConfigError("num_classes=0: cross entropy requires classes; name another loss, such as loss='mse'")
        if not isinstance(y, Tensor):
            return wanted or 0
        return check_labels(y, y_test, wanted, loss, given.get("ignore_index"))
    if wanted == 0 or not isinstance(y, Tensor) or y.is_floating_point():
        return 0 if wanted is None or not isinstance(y, Tensor) or y.is_floating_point() else wanted
    if getattr(loss, "name", "dice") != "dice":
        return 0
    with drawing(0), torch.no_grad():
        try:
            out = scores(call(built(make).eval(), first(x)), given.get("output"))
        except ConfigError:
            return wanted or 0
        except Exception:  # named by the check that follows
            return wanted or check_labels(y, y_test, None, loss, given.get("ignore_index"))
    if out.dim() != y.dim() + 1 or out.shape[1] == 1:
        return wanted or 0
    return check_labels(y, y_test, wanted, loss, given.get("ignore_index"))


def reading_scores(make: Any, x: Any, loss: Any, given: Mapping[str, Any]) -> Any:
    """Return the loss; cross entropy on a model's dict, tuple or object reads its scores."""
    if loss is not F.cross_entropy:
        return loss
    with drawing(0), torch.no_grad():
        try:
            out = call(built(make).eval(), first(x))
        except Exception:  # named by the check that follows
            return loss
    if isinstance(out, Tensor):
        return loss
    try:
        scores(out, given.get("output"))
    except ConfigError as error:
        raise ConfigError(f"{type(built(make)).__name__} returns a {type(out).__name__}: {error}") from error
    return NamedLoss("cross_entropy", given.get("ignore_index"), given.get("mask"), given.get("output"))


def told(kind: Any) -> str:
    """Return a `kind_of` as text."""
    if isinstance(kind, tuple) and len(kind) == 2 and isinstance(kind[0], torch.dtype):
        return f"{kind[0]} of shape {list(kind[1])}"
    return ", ".join(f"{name.strip('[]')}: {dtype} of shape {list(shape)}" for name, dtype, shape in kind)


def held_out(count: int, share: float, stream: int = 0) -> Tensor:
    """Return the rows of a test set: a random share of at least one row, the same for each call."""
    if not 0 <= share < 1:
        raise ConfigError(f"test={share}: the share that is held out must be at least 0 and below 1")
    wanted = min(max(round(share * count), int(share > 0)), max(count - 1, 0))
    return torch.randperm(count, generator=torch.Generator().manual_seed(stream))[:wanted].sort().values


def apart(data: tuple[Any, Any], held: Tensor) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return the samples that are not held out, and those that are."""
    count = length(data[0])
    kept = torch.ones(count, dtype=torch.bool).index_fill(0, held, False).nonzero()[:, 0]
    if not len(held):
        few = "; 1 sample is too few for both parts" if count == 1 else ""
        raise DataError(f"the test set has no samples{few}; hold out a share with test=0.2, or pass one")
    return (select(data[0], kept), select(data[1], kept)), (select(data[0], held), select(data[1], held))


def rows_of(frame: Any, rows: Any) -> Any:
    """Return rows of a frame of pandas or polars."""
    return frame.iloc[rows] if hasattr(frame, "iloc") else frame[rows]


def are_indices(y: Tensor, num_classes: int | None) -> bool:
    """Return whether whole numbers are class indices: few, from 0 and without gaps, or with a number of classes that is given."""
    if y.is_floating_point():
        return False
    found = torch.unique(y)
    return num_classes is not None or (int(found[0]) == 0 and int(found[-1]) == len(found) - 1 and 1 < len(found) <= _FEW)


def scaling_of(y: Tensor) -> tuple[float, float]:
    """Return mean and deviation of numbers; a deviation of 1 for equal ones.

    Example:
        >>> scaling_of(torch.tensor([1.0, 3.0]))
        (2.0, 1.0)
    """
    return float(y.mean()), float(y.std(unbiased=False)) or 1.0


def owners_of(values: Any) -> tuple[Tensor, tuple[str, ...]]:
    """Return the code of each sample's natural client, and the clients' names, in order."""
    texts = [str(value) for value in values]
    names = sorted(set(texts))
    places = {name: place for place, name in enumerate(names)}
    return torch.tensor([places[text] for text in texts]), tuple(names)
