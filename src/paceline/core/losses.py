"""Losses by name, and the target values that count: said once in the task, respected by losses and counts.

A named loss reads its scores from whatever a module returns: a tensor, the entry ``logits`` (or ``out``, ``scores``) of a
dict or object, or the first part of a tuple. It is the mean over the targets that count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from paceline.core.errors import ConfigError, UnknownNameError

__all__ = ["CLASS_LOSSES", "LOSSES", "NamedLoss", "counted", "find_loss", "named_loss", "scores", "target"]

_SCORES = ("logits", "out", "scores", "output", "outputs", "prediction", "predictions")
_LEAST = 1e-6


def scores(outputs: Any, name: str | int | None = None) -> Tensor:
    """Return the scores among a module's outputs.

    Args:
        outputs: a tensor, a tuple, a dict, or an object with attributes, as models of `transformers` return.
        name: entry or attribute that holds the scores; by default ``logits``, ``out`` or ``scores``, the only tensor of a
            dict, and the first part of a tuple.

    Raises:
        ConfigError: there is no such entry.

    Example:
        >>> scores({"logits": torch.zeros(2, 3), "hidden": torch.zeros(2)}).shape
        torch.Size([2, 3])
    """
    if isinstance(outputs, Tensor):
        return outputs
    found: Any = None
    if isinstance(outputs, Mapping):
        tensors = [key for key, value in outputs.items() if isinstance(value, Tensor)]
        keys = [name] if name is not None else [*(k for k in _SCORES if k in outputs), *(tensors if len(tensors) == 1 else [])]
        found = next((outputs[key] for key in keys if key in outputs), None)
    elif isinstance(outputs, tuple | list) and not hasattr(outputs, "_fields"):
        found = outputs[name or 0] if isinstance(name, int | None) and len(outputs) > (name or 0) else None
    else:
        keys = [name] if name is not None else list(_SCORES)
        found = next((getattr(outputs, key) for key in keys if isinstance(key, str) and hasattr(outputs, key)), None)
        if found is None and name is None and isinstance(outputs, tuple) and outputs:
            found = outputs[0]
    if isinstance(found, Tensor):
        return found
    held = f" with {', '.join(map(str, outputs))}" if isinstance(outputs, Mapping) else ""
    raise ConfigError(
        f"the model returns a {type(outputs).__name__}{held}, in which the scores are not found"
        f"{'' if name is None else f' as {name!r}'}; name their entry with output=..., or pass a loss function"
    )


def target(targets: Any, mask: str | None = None) -> Tensor:
    """Return the only tensor of targets, beside the mask. Raises `ConfigError` where there are several."""
    if isinstance(targets, Tensor):
        return targets
    parts = targets if isinstance(targets, Mapping) else dict(enumerate(targets))
    left = [part for name, part in parts.items() if name != mask]
    if len(left) == 1 and isinstance(left[0], Tensor):
        return left[0]
    raise ConfigError(
        f"a named loss takes one tensor of targets, not {len(left)}; pass a loss function (outputs, targets) -> scalar"
    )


def counted(targets: Any, ignore_index: int | None = None, mask: str | None = None) -> Tensor | None:
    """Return which targets count, bool and shaped as the targets or with fewer trailing dimensions; None for all."""
    found: Tensor | None = None
    if mask is not None and isinstance(targets, Mapping):
        found = targets[mask].bool()
    if ignore_index is not None and not (value := target(targets, mask)).is_floating_point():
        kept = value != ignore_index
        found = kept if found is None else kept & found
    return found


def _alike(out: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores in the shape of the targets, and targets as floats: a last dimension of 1 is dropped or added."""
    if out.dim() == y.dim() + 1 and out.shape[-1] == 1:
        out = out.squeeze(-1)
    elif y.dim() == out.dim() + 1 and y.shape[-1] == 1:
        y = y.squeeze(-1)
    if out.shape != y.shape:
        raise ConfigError(
            f"the model returns scores of shape {list(out.shape)} for targets of shape {list(y.shape)}; they must be equal"
        )
    return out, y.to(out.dtype)


def _cross_entropy(out: Tensor, y: Tensor, ignored: int) -> Tensor:
    return torch.as_tensor(F.cross_entropy(out, y, ignore_index=ignored, reduction="none"))


def _next_token(out: Tensor, y: Tensor, ignored: int) -> Tensor:
    return _cross_entropy(out[:, :-1].transpose(1, 2), y[:, 1:], ignored)


def _dice(out: Tensor, y: Tensor, kept: Tensor | None) -> Tensor:
    """Return 1 - the mean soft Dice coefficient over samples and classes."""
    classes = out.shape[1] if out.dim() == y.dim() + 1 else 1
    if classes == 1:
        chance, truth = torch.sigmoid(out.reshape(y.shape)).unsqueeze(1), y.to(out.dtype).unsqueeze(1)
    else:
        chance = out.softmax(1)
        truth = (y.unsqueeze(1) == torch.arange(classes, device=y.device).view(1, -1, *[1] * (y.dim() - 1))).to(out.dtype)
    if kept is not None:
        chance, truth = chance * kept.unsqueeze(1), truth * kept.unsqueeze(1)
    chance, truth = chance.flatten(2), truth.flatten(2)
    both = 2 * (chance * truth).sum(2) + 1
    return 1 - (both / (chance.sum(2) + truth.sum(2) + 1)).mean()


def _elementwise(fn: Callable[..., Any], **options: Any) -> Callable[[Tensor, Tensor, int], Tensor]:
    def loss(out: Tensor, y: Tensor, ignored: int) -> Tensor:
        return torch.as_tensor(fn(*_alike(out, y), reduction="none", **options))

    return loss


_EACH: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "cross_entropy": _cross_entropy,
    "nll": lambda out, y, ignored: torch.as_tensor(F.nll_loss(out, y, ignore_index=ignored, reduction="none")),
    "next_token": _next_token,
    "bce": _elementwise(F.binary_cross_entropy_with_logits),
    "mse": _elementwise(F.mse_loss),
    "l1": _elementwise(F.l1_loss),
    "huber": _elementwise(F.huber_loss),
    "poisson": _elementwise(F.poisson_nll_loss, log_input=True),
}
"""Loss of each target, by name; ``dice`` is not a mean over targets."""

LOSSES = {
    "cross_entropy": "class scores [N, C, ...] and class indices [N, ...]",
    "nll": "log-probabilities [N, C, ...] and class indices [N, ...]",
    "next_token": "scores [N, L, V] of the token after each one, and the tokens [N, L] themselves",
    "bce": "logits and targets from 0 to 1 of the same shape: binary and multi-label",
    "mse": "squared error",
    "l1": "absolute error",
    "huber": "squared error up to 1, absolute beyond",
    "poisson": "logarithms of rates, and counts",
    "dice": "1 - soft Dice: class scores [N, C, ...] and class indices [N, ...], or logits and a mask of the same shape",
}
"""What each named loss takes."""

CLASS_LOSSES = frozenset({"cross_entropy", "nll", "dice"})
"""Losses whose targets may be class indices, with one channel of scores for each class."""

VALUE_LOSSES = frozenset({"mse", "l1", "huber", "poisson"})
"""Losses whose targets are numbers."""

_INDICES = frozenset({"cross_entropy", "nll"})


@dataclass(frozen=True)
class NamedLoss:
    """A loss by name: the mean over the targets that count, 0 where none does.

    Args:
        name: see `LOSSES`.
        ignore_index: target that does not count.
        mask: entry of the targets that is 0 where they do not count.
        output: entry of the module's outputs that holds the scores, see `scores`.

    Example:
        >>> loss = NamedLoss("cross_entropy", ignore_index=255)
        >>> round(float(loss({"logits": torch.zeros(3, 4)}, torch.tensor([0, 255, 3]))), 4)
        1.3863
    """

    name: str
    ignore_index: int | None = None
    mask: str | None = None
    output: str | int | None = None

    def __call__(self, outputs: Any, targets: Any) -> Tensor:
        """Return the mean loss, a scalar."""
        out, y = scores(outputs, self.output), target(targets, self.mask)
        if out.dtype in (torch.float16, torch.bfloat16):
            out = out.float()
        kept = counted(targets, self.ignore_index, self.mask)
        if self.name == "dice":
            return _dice(out, y, kept)
        each = _EACH[self.name](out, y, -100 if self.ignore_index is None else self.ignore_index)
        if self.name in _INDICES and self.ignore_index is None:
            kept = y >= 0 if kept is None else kept & (y >= 0)
        if kept is None and self.name != "next_token":
            return each.mean()
        kept = torch.ones_like(y, dtype=torch.bool) if kept is None else kept
        if self.name == "next_token":
            kept = (kept & (y >= 0) if self.ignore_index is None else kept)[:, 1:]
        kept = kept.reshape(*kept.shape, *[1] * (each.dim() - kept.dim())).expand_as(each)
        return torch.where(kept, each, 0.0).sum() / kept.sum().clamp(min=1)


def named_loss(name: str, ignore_index: int | None = None, mask: str | None = None, output: str | int | None = None) -> Any:
    """Return the loss of a name: torch's own function where nothing is ignored, which engines know as the fast path.

    Raises:
        UnknownNameError: there is no such loss; lists the nearest names.
    """
    if name not in LOSSES:
        raise UnknownNameError("loss", name, LOSSES)
    if name == "cross_entropy" and ignore_index in (None, -100) and mask is None and output is None:
        return F.cross_entropy
    return NamedLoss(name, ignore_index, mask, output)


def _unlabelled(targets: Any) -> bool:
    """Return whether some class labels are negative, and so do not count."""
    whole = isinstance(targets, Tensor) and not targets.is_floating_point() and not targets.is_complex()
    return whole and targets.dtype != torch.bool and targets.numel() > 0 and bool(targets.min() < 0)


def find_loss(loss: Any, ignore_index: int | None, mask: str | None, output: str | int | None, targets: Any = None) -> Any:
    """Return a task's loss; what is ignored is given to torch's cross entropy too, and is a user's function's own affair.

    Of targets that are partly without a label, torch's mean is not a number where a batch has none; that of the name is 0.
    """
    if not isinstance(loss, str) and loss is not F.cross_entropy:
        return loss
    found = named_loss(loss if isinstance(loss, str) else "cross_entropy", ignore_index, mask, output)
    return NamedLoss("cross_entropy") if found is F.cross_entropy and _unlabelled(targets) else found
