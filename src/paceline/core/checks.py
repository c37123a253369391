"""Checks of a task: its labels, and a forward pass, loss and backward pass of two samples, before the first round."""

from __future__ import annotations

import copy
import dataclasses
import functools
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from paceline.core.columns import Ragged, call, columns, length, take
from paceline.core.errors import ConfigError, DataError, DataFormatError, PacelineError
from paceline.core.generators import drawing
from paceline.core.losses import NamedLoss, scores
from paceline.core.samples import ClientData
from paceline.core.wording import field

if TYPE_CHECKING:
    from paceline.core.method import Method
    from paceline.core.task import Task

__all__ = [
    "ScoresWarning",
    "built",
    "check_finite",
    "check_labels",
    "check_range",
    "check_task",
    "described",
    "idle_fields",
    "model_dtype",
    "model_maker",
    "takes_classes",
    "try_model",
]

IGNORED = -100

_NEAR = 0.05
"""Largest deviation of the logarithm of a sum of probabilities from 0, also in half precision."""
_PART = 1 << 22
"""Values of a column that are searched for NaN at a time."""


class ScoresWarning(UserWarning):
    """The scores of a model are of another kind than its loss takes."""


def check_task(task: Task, module: nn.Module | None = None) -> None:
    """Check that labels, model and loss of a task fit together; what does not is named, with what to change.

    Args:
        task: the task.
        module: its module, on the CPU, if there is one already.

    Raises:
        DataError: there are no samples.
        DataFormatError: targets that the loss does not take.
        ConfigError: the model does not take a sample, or the loss not its outputs.
    """
    if getattr(task, "objective", None) is not None:  # a black box: no loss of a model
        return
    if not length(task.train.x):
        raise DataError(f"task {task.name!r} has no training samples")
    for y, which in ((task.train.y, "train"), (task.test.y, "test")):
        check_range(y, which, task.loss, task.ignore_index)
    if takes_classes(task.loss, task.num_classes):
        check_labels(task.train.y, task.test.y, task.num_classes, task.loss, task.ignore_index)
    rows = torch.arange(min(2, length(task.train.x)))
    x, y = ClientData(task.train.x, task.train.y, rows).at(rows)
    try_model(lambda: task.build(0) if module is None else module, x, y, task.loss, task.num_classes, task.output)


def takes_classes(loss: Any, num_classes: int) -> bool:
    """Return whether targets must be class indices."""
    return num_classes > 0 and (
        loss is F.cross_entropy or isinstance(loss, nn.CrossEntropyLoss) or _named(loss, "cross_entropy", "nll")
    )


def _named(loss: Any, *names: str) -> bool:
    return isinstance(loss, NamedLoss) and loss.name in names


def check_finite(tree: Any, which: str, name: str) -> None:
    """Raise `DataError` for a value that is NaN or infinite, with its sample."""
    for place, column in columns(tree):
        values = column.values if isinstance(column, Ragged) else column
        if not isinstance(values, Tensor) or not values.is_floating_point() or not values.numel():
            continue
        step, start = max(_PART // max(values[0].numel(), 1), 1), 0
        for part in torch.split(values, step):
            if not bool(part.isfinite().all()):
                first = start + int((~part.isfinite().reshape(len(part), -1).all(1)).nonzero()[0])
                first = first if values is column else int((column.offsets <= first).sum()) - 1
                raise DataError(
                    f"{which}: {name}{place} of sample {first} is NaN or infinite; impute missing values or drop the sample"
                )
            start += len(part)


def check_labels(train: Any, test: Any, num_classes: int | None, loss: Any, ignore_index: int | None = None) -> int:
    """Return the number of classes; raises `DataFormatError` for targets that the loss cannot take.

    Args:
        train, test: targets.
        num_classes: as given; None to count them.
        loss: of the task.
        ignore_index: target that does not count; -100 by default, as torch has it.
    """
    found = 0
    for y, which in ((train, "train"), (test, "test")):
        if not isinstance(y, Tensor):
            continue
        if y.is_floating_point():
            name = "cross entropy" if takes_classes(loss, 1) else "the evaluation, which counts correct predictions per class,"
            raise DataFormatError(f"{which}: y is {y.dtype}; {name} requires class indices: {_to_indices(y)}")
        if y.dim() == 2 and y.shape[1] == 1:
            raise DataFormatError(f"{which}: y has shape {list(y.shape)}; drop its last dimension with y.squeeze(1)")
        kept = y[y != (IGNORED if ignore_index is None else ignore_index)]
        if y.dim() == 1 and kept.numel() and int(kept.min()) < 0:
            raise DataFormatError(f"{which}: y contains {int(kept.min())}; class indices start at 0")
        found = max(found, int(kept.max()) + 1 if kept.numel() else 0)
    if num_classes is not None and found > num_classes:
        ignored = f"; a label that does not count is named with ignore_index={found - 1}" if found == 256 else ""
        raise DataFormatError(f"y contains class {found - 1}, but num_classes={num_classes}{_from_zero(train, test)}{ignored}")
    if num_classes is None and ignore_index is not None and found == 1:
        raise DataFormatError(
            f"all targets that count are 0, as ignore_index={ignore_index} leaves out the others, and there is nothing to tell apart; "
            f"write y // {ignore_index} in place of ignore_index if {ignore_index} is a class, or num_classes if others are to come"
        )
    return num_classes or found


def check_range(y: Any, which: str, loss: Any, ignore_index: int | None = None) -> None:
    """Raise `DataFormatError` for targets that a named loss does not take: below 0, or for ``bce`` above 1.

    Args:
        y: targets; only a tensor is checked.
        which: part of the task, for the message.
        loss: of the task.
        ignore_index: target that does not count.
    """
    if not isinstance(y, Tensor) or not y.numel() or not _named(loss, "bce", "poisson"):
        return
    if ignore_index is not None and not y.is_floating_point():
        y = y[y != ignore_index]
    low, high = (float(y.min()), float(y.max())) if y.numel() else (0.0, 0.0)
    if low < 0 or (high > 1 and loss.name == "bce"):
        known, advice = (
            ("targets from 0 to 1", "; whole numbers that do not count are named with ignore_index=")
            if loss.name == "bce"
            else ("counts", "; for other numbers use loss='mse'")
        )
        raise DataFormatError(f"{which}: y is from {low:g} to {high:g}, but loss={loss.name!r} takes {known}{advice}")


def _from_zero(*targets: Any) -> str:
    """Return what to do if no label is 0, as where labels begin at 1; empty otherwise."""
    least = min((int(y.min()) for y in targets if isinstance(y, Tensor) and y.numel() and not y.is_floating_point()), default=0)
    return f"; the smallest label is {least}, and class indices begin at 0: subtract {least} from y" if least > 0 else ""


def _of_masks(num_classes: int) -> str:
    """Return what to do about the label 255 of masks; empty for another number of classes."""
    if num_classes != 256:
        return ""
    return "; write ignore_index=255 if targets of 255 do not count, or y // 255 if masks are 0 and 255"


def _to_indices(y: Tensor) -> str:
    """Return how targets of floats become class indices, or another loss takes them."""
    if _one_hot(y):
        return "these are one-hot; pass y.argmax(1)"
    if y.dim() == 2 and bool(((y == 0) | (y == 1)).all()):
        return "these are several labels per sample; use loss='bce'"
    if bool((y == y.round()).all()):
        return "convert them with y.long(), or y.astype(int) for an array"
    return "these are not whole numbers; for a quantity use loss='mse'"


def _one_hot(y: Any) -> bool:
    if not isinstance(y, Tensor) or y.dim() != 2 or y.shape[1] < 2:
        return False
    return bool((((y == 0) | (y == 1)).all(1) & (y.sum(1) == 1)).all())


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


def built(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a module. Raises `ConfigError` where it cannot be built without arguments, or is no module."""
    try:
        module = make()
    except PacelineError:
        raise
    except Exception as error:
        raise ConfigError(
            f"the model cannot be built without arguments: {type(error).__name__}: {error}; wrap it in a function"
        ) from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"model returned an object of type {type(module).__name__}; it must be a torch.nn.Module")
    lazy = [
        name for name, part in module.named_modules() if any(map(is_lazy, [*part._parameters.values(), *part._buffers.values()]))
    ]
    if lazy:
        shown = ", ".join(f"{type(module.get_submodule(name)).__name__} {name}".strip() for name in lazy[:3])
        raise ConfigError(
            f"{type(module).__name__} has layers whose sizes are known only once they are called ({shown}); give them their sizes, as in "
            "nn.Linear(8, 2) for nn.LazyLinear(2)"
        )
    return module


def model_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype in which a module takes floating-point inputs: that of its first parameter."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def described(batch: Any) -> str:
    """Return dtypes and shapes of one sample of a batch, as text."""
    parts = [f"{name.strip('[]')}: {t.dtype} of shape {list(t.shape[1:])}".removeprefix(": ") for name, t in columns(batch)]
    return ", ".join(parts)


def try_model(make: Callable[[], nn.Module], x: Any, y: Any, loss: Any, num_classes: int, output: str | int | None = None) -> None:
    """Pass up to two samples through a model and its loss, and back.

    Args:
        make: builds the module.
        x, y: a batch, of which at most two samples are used.
        loss: of the task.
        num_classes: of the task.
        output: entry of the outputs that holds the scores.

    Raises `ConfigError` with what does not fit.
    """
    rows = torch.arange(min(2, length(x)))
    x, y = take(x, rows), take(y, rows)
    with drawing(0), warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*target size.*different to the input size.*")
        module = built(make)
        name = type(module).__name__
        modes = {part: part.training for part in module.modules()}
        try:
            out = call(module.eval(), x)
        except PacelineError:
            raise
        except Exception as error:
            raise ConfigError(
                f"{name} does not accept a sample, {described(x)}: {type(error).__name__}: {error}{_dtype_hint(module, x)}"
            ) from error
        if loss is F.cross_entropy and not isinstance(out, Tensor):
            raise ConfigError(
                f"{name} returns a {type(out).__name__}; it must return a tensor of scores, or the task must name its loss: "
                "loss='cross_entropy' takes dicts, tuples and objects with logits"
            )
        if takes_classes(loss, num_classes):
            found = scores(out, output)
            if found.dim() < 2 or found.shape[1] < num_classes:
                raise ConfigError(
                    f"{name} returns shape {[1, *found.shape[1:]]} for one sample; {num_classes} classes require "
                    f"[1, {num_classes}, ...]{_from_zero(y) or _of_masks(num_classes)}"
                )
        _check_scores(module, out, loss, output)
        _try_loss(module, name, out, y, loss, output)
        module.zero_grad(set_to_none=True)
        for part, mode in modes.items():
            part.training = mode


def _check_scores(module: nn.Module, out: Any, loss: Any, output: str | int | None) -> None:
    """Refuse scores that are no log-probabilities for the loss ``nll``, and warn of probabilities where a loss takes scores."""
    entropy, nll, bce = loss is F.cross_entropy or _named(loss, "cross_entropy"), _named(loss, "nll"), _named(loss, "bce")
    found = scores(out, output).detach().float() if entropy or nll or bce else torch.empty(0)
    if found.dim() < 2 or not bool(found.isfinite().all()):
        return
    name, several = type(module).__name__, found.shape[1] > 1
    if nll and several and float(found.logsumexp(1).abs().max()) > _NEAR:
        raise ConfigError(
            f"{name} returns scores that are no log-probabilities, which loss='nll' requires; end it with nn.LogSoftmax(1), or use "
            "loss='cross_entropy'"
        )
    summed = entropy and several and bool((found >= 0).all()) and float((found.sum(1) - 1).abs().max()) < 1e-4
    if summed or (bce and isinstance(list(module.modules())[-1], nn.Sigmoid) and bool(((found >= 0) & (found <= 1)).all())):
        what, again = ("softmax", "cross_entropy") if summed else ("sigmoid", "bce")
        text = (
            f"{name} returns probabilities, of which loss={again!r} takes the {what} once more; return the scores before the {what}"
        )
        warnings.warn(text, ScoresWarning, stacklevel=2)


def _try_loss(module: nn.Module, name: str, out: Any, y: Any, loss: Any, output: str | int | None) -> None:
    shapes = f"outputs of shape {list(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
    wanted = f"targets of shape {list(y.shape)}" if isinstance(y, Tensor) else f"targets {described(y)}"
    try:
        value = loss(out, y)
    except PacelineError:
        raise
    except Exception as error:
        hint = (
            "; the targets are one-hot: pass y.argmax(1)"
            if _one_hot(y) and isinstance(out, Tensor) and out.shape == y.shape
            else ""
        )
        raise ConfigError(f"the loss does not accept {shapes} and {wanted}: {type(error).__name__}: {error}{hint}") from error
    if not isinstance(value, Tensor) or value.numel() != 1 or value.dim():
        what = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ConfigError(f"the loss returns {what}; it must return one scalar tensor: its mean over the batch")
    if not value.requires_grad:
        if any(p.requires_grad for p in module.parameters()):
            raise ConfigError(f"the loss of {name} does not depend on its parameters; let it return a tensor with a gradient")
        return
    if not bool(torch.isfinite(value)):
        raise ConfigError(
            f"the loss of {name} on two samples is {float(value.detach())}; check the inputs, the targets and the initial weights"
        )
    try:
        value.backward()  # type: ignore[no-untyped-call]
    except Exception as error:
        raise ConfigError(f"the loss of {name} has no gradient: {type(error).__name__}: {error}") from error


def _dtype_hint(module: nn.Module, x: Any) -> str:
    """Return how inputs of another dtype than the model's are converted; empty where all have its dtype."""
    wanted = model_dtype(module)
    other = next((t.dtype for _, t in columns(x) if isinstance(t, Tensor) and t.dtype != wanted), None)
    return (
        ""
        if other is None
        else f"; the model computes in {wanted}: convert {other} inputs with x.to({wanted}) where it needs them so"
    )


def idle_fields(method: Method[Any]) -> list[str]:
    """Return one sentence for each field of a method that was set although it has no effect, see `Method.unused`."""
    given = [(f.name, getattr(method, f.name), f.default) for f in dataclasses.fields(method) if f.name in method.unused]
    return [
        f"method {method.slug()!r} does not use {field(n, v)}; leave it at {default!r}" for n, v, default in given if v != default
    ]
