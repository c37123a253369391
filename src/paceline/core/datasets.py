"""Data sets and models as users have them, made into the parts of a task and checked at once."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.core.errors import ConfigError, DataError, DataFormatError
from paceline.core.generators import drawing

__all__ = ["check_labels", "model_maker", "samples", "try_model"]


def samples(data: Any, which: str) -> tuple[Tensor, Tensor]:
    """Return a data set's inputs, shape [N, ...], and targets, shape [N, ...], on the CPU.

    Args:
        data: a pair (x, y) of tensors or arrays, or a map-style data set whose samples are such pairs.
        which: name of the part, for messages.

    Floats of 64 bits become float32, integer and boolean targets int64. Each sample of a data set is read once, so a random
    transform is applied once.

    Raises `DataError` where there are no samples, lengths differ or a value is not finite, `DataFormatError` for samples that
    are no such pairs.
    """
    if isinstance(data, torch.utils.data.TensorDataset):
        data = data.tensors
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor | np.ndarray) for part in data):
        x, y = (_tensor(part) for part in data)
        if not x.dim() or not y.dim() or len(x) != len(y):
            raise DataError(f"{which}: x has shape {list(x.shape)} and y {list(y.shape)}; their first dimensions must be equal")
    else:
        x, y = _collect(data, which)
    if not len(x):
        raise DataError(f"{which}: the data set has no samples")
    for part, name in ((x, "x"), (y, "y")):
        if part.is_floating_point() and not bool(part.isfinite().all()):
            first = int((~part.isfinite().reshape(len(part), -1).all(1)).nonzero()[0])
            raise DataError(f"{which}: {name} of sample {first} is NaN or infinite; impute missing values or drop the sample")
    if not y.is_floating_point():
        y = y.long()
    return x, y


def _collect(data: Any, which: str) -> tuple[Tensor, Tensor]:
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        raise DataFormatError(
            f"{which}: a {type(data).__name__} is not a map-style data set; implement __len__ and a __getitem__ that returns (x, y)"
        )
    xs: list[Tensor] = []
    ys: list[Tensor] = []
    for i in range(len(data)):
        sample = data[i]
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            if isinstance(data, tuple | list) and len(data) == 2 and isinstance(sample, list):
                raise DataFormatError(f"{which}: got a pair of lists; convert each to a tensor or an array")
            raise DataFormatError(f"{which}: sample {i} is a {type(sample).__name__}; it must be a pair (x, y)")
        for part, into, name in zip(sample, (xs, ys), "xy", strict=True):
            if not isinstance(part, Tensor | np.ndarray | np.generic | int | float):
                hint = "; convert it in the data set's transform, as torchvision's ToTensor does" if name == "x" else ""
                raise DataFormatError(
                    f"{which}: {name} of sample {i} is a {type(part).__name__}; it must be a tensor, array or number{hint}"
                )
            into.append(_tensor(part))
            if part is not None and into[-1].shape != into[0].shape:
                raise DataFormatError(
                    f"{which}: {name} of sample {i} has shape {list(into[-1].shape)}, but sample 0 has {list(into[0].shape)}; "
                    f"pad or crop all samples to the same shape"
                )
    return (torch.stack(xs), torch.stack(ys)) if xs else (torch.empty(0), torch.empty(0))


def _tensor(value: Any) -> Tensor:
    made = torch.as_tensor(value).detach().cpu()
    return made.float() if made.dtype == torch.float64 else made


def check_labels(train: Tensor, test: Tensor, num_classes: int | None, loss: Any) -> int:
    """Return the number of classes; raises `DataFormatError` for targets that the loss cannot take.

    Args:
        train, test: targets.
        num_classes: as given; None to count them.
        loss: of the task.
    """
    for y, which in ((train, "train"), (test, "test")):
        if y.is_floating_point():
            name = "cross entropy" if loss is F.cross_entropy else "the evaluation, which counts correct predictions per class,"
            raise DataFormatError(f"{which}: y is {y.dtype}; {name} requires class indices: {_to_indices(y)}")
        if y.dim() == 2 and y.shape[1] == 1:
            raise DataFormatError(f"{which}: y has shape {list(y.shape)}; drop its last dimension with y.squeeze(1)")
        if y.dim() == 1 and int(y.min()) < 0:
            raise DataFormatError(f"{which}: y contains {int(y.min())}; class indices start at 0")
    found = int(max(train.max(), test.max())) + 1
    if num_classes is not None and found > num_classes:
        raise DataFormatError(f"y contains class {found - 1}, but num_classes={num_classes}{_from_zero(train, test)}")
    return num_classes or found


def _from_zero(*targets: Tensor) -> str:
    """Return what to do if no label is 0, as where labels begin at 1; empty otherwise."""
    least = min(int(y.min()) for y in targets if len(y))
    return f"; the smallest label is {least}, and class indices begin at 0: subtract {least} from y" if least > 0 else ""


def _to_indices(y: Tensor) -> str:
    """Return how targets of floats become class indices."""
    if y.dim() == 2 and y.shape[1] > 1 and bool((((y == 0) | (y == 1)).all(1) & (y.sum(1) == 1)).all()):
        return "these are one-hot; pass y.argmax(1)"
    if bool((y == y.round()).all()):
        return "convert them with y.long(), or y.astype(int) for an array"
    return "these are not whole numbers; bin a continuous quantity into classes first"


def model_maker(model: Any) -> Callable[[], nn.Module]:
    """Return what builds a fresh module.

    Args:
        model: a module's class, a function that makes one, or a module, whose weights are the start: it is copied once, and
            trained never.
    """
    if isinstance(model, nn.Module):
        return functools.partial(copy.deepcopy, copy.deepcopy(model).cpu())
    if callable(model):
        make: Callable[[], nn.Module] = model
        return make
    raise ConfigError(f"model={model!r}: pass a module, a module's class, or a function that returns a module")


def try_model(make: Callable[[], nn.Module], x: Tensor, y: Tensor, loss: Any, num_classes: int) -> None:
    """Pass one sample through a model and its loss.

    Args:
        make: builds the module.
        x, y: samples.
        loss: of the task.
        num_classes: of the task.

    Raises `ConfigError` with what does not fit.
    """
    with drawing(0), torch.no_grad():
        try:
            module = make()
        except Exception as error:
            raise ConfigError(
                f"the model cannot be built without arguments: {type(error).__name__}: {error}; wrap it in a function"
            ) from error
        if not isinstance(module, nn.Module):
            raise ConfigError(f"model returned an object of type {type(module).__name__}; it must be a torch.nn.Module")
        name = type(module).__name__
        try:
            out = module.eval()(x[:1])
        except Exception as error:
            raise ConfigError(
                f"{name} does not accept a sample, {x.dtype} of shape {list(x.shape[1:])}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(out, Tensor):
            raise ConfigError(f"{name} returns a {type(out).__name__}; it must return a tensor of scores")
        if loss is F.cross_entropy and (out.dim() < 2 or out.shape[1] < num_classes):
            raise ConfigError(
                f"{name} returns shape {list(out.shape)} for one sample; {num_classes} classes require [1, {num_classes}, ...]"
                f"{_from_zero(y)}"
            )
        try:
            loss(out, y[:1])
        except Exception as error:
            raise ConfigError(
                f"the loss does not accept outputs of shape {list(out.shape)} and targets of shape {list(y[:1].shape)}: "
                f"{type(error).__name__}: {error}"
            ) from error
