"""Terms of metrics over the batches of an evaluation, and which targets count: decided here for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from paceline.core.errors import ConfigError
from paceline.core.generators import drawing
from paceline.core.metrics import Metric, chosen, packed
from paceline.core.params import Resident
from paceline.core.samples import ClientData, Problem
from paceline.core.tree import map_leaves

__all__ = ["MetricTerms", "are_classes", "leading"]


class MetricTerms:
    """Terms of a problem's metrics, summed over batches, without those that every evaluation has.

    Args:
        problem: the problem.
    """

    def __init__(self, problem: Problem) -> None:
        self.metrics = chosen(problem)
        self.ignored: int | None = getattr(problem, "ignore_index", None)
        self.totals: dict[str, dict[str, Tensor]] = {}
        self.counted = False

    def marked(self, targets: Any) -> Any:
        """Return targets in which those that do not count are negative."""
        ignored = self.ignored
        if ignored is None or ignored < 0:
            return targets
        return map_leaves(lambda y: y if y.is_floating_point() else y.masked_fill(y.eq(ignored), -1), targets)

    def add(self, outputs: Any, targets: Any, counted: bool = False) -> None:
        """Add the terms of a batch.

        Args:
            outputs: outputs of the model.
            targets: targets of the batch.
            counted: whether correct answers per class are counted too.
        """
        self.counted = counted
        for metric in self._asked():
            terms = metric.terms(outputs, self.marked(targets))
            total = self.totals.setdefault(metric.figure, {})
            for name, term in terms.items():
                value = torch.as_tensor(term)
                value = value.double() if value.is_floating_point() else value.long()
                total[name] = total[name] + value if name in total else value

    def _asked(self) -> list[Metric]:
        return [metric for metric in self.metrics if not (metric.counted and self.counted)]

    @property
    def missing(self) -> bool:
        """Whether metrics have no terms because nothing was scored."""
        return not self.totals and bool(self.metrics)

    def shape(self, model: Resident, data: ClientData, outputs: Callable[[nn.Module, Tensor], Tensor] | None, classes: int) -> None:
        """Set the terms to zeros, in the shapes that they have for any other sample of the task."""
        rows = torch.arange(min(2, len(leading(data.y))), device=data.index.device)
        with drawing(0, model.device):  # does not affect the random stream of the evaluation
            for x, y in ClientData(data.x, data.y, rows).batches(2):
                out = model.module(x) if outputs is None else outputs(model.module, x)
                self.add(out, y, counted=are_classes(out, y, classes))
        if not self.totals and any(not metric.counted for metric in self._asked()):
            raise ConfigError(f"{self.metrics[0].figure} cannot be computed without samples; give this client at least one")
        self.totals = {figure: {n: torch.zeros_like(v) for n, v in terms.items()} for figure, terms in self.totals.items()}

    def into(self, sums: dict[str, Any]) -> dict[str, Any]:
        """Return the sums of an evaluation with the terms."""
        return {**sums, "metrics": {figure: packed(terms) for figure, terms in self.totals.items()}} if self.totals else sums


def leading(tree: Any) -> Tensor:
    """Return the tensor that is judged: ``logits`` of a dict or an object with attributes, otherwise its first entry.

    Example:
        >>> leading({"hidden": torch.ones(2), "logits": torch.zeros(1)}), leading((torch.ones(1), torch.zeros(1)))
        (tensor([0.]), tensor([1.]))
    """
    while not isinstance(tree, Tensor):
        if isinstance(tree, Mapping):
            tree = tree["logits"] if "logits" in tree else next(iter(tree.values()))
        elif isinstance(tree, list | tuple):
            tree = tree[0]
        elif hasattr(tree, "logits"):
            tree = tree.logits
        else:
            raise ConfigError(
                f"a {type(tree).__name__} cannot be judged; return a tensor, a tuple, a dict or an object with logits"
            )
    return tree


def are_classes(outputs: Any, targets: Any, classes: int) -> bool:
    """Return whether targets are class indices and outputs their scores: [N, C, ...] for targets [N, ...]."""
    if not classes:
        return False
    out = outputs if isinstance(outputs, Tensor) else leading(outputs)
    y = targets if isinstance(targets, Tensor) else leading(targets)
    return not y.is_floating_point() and out.dim() == y.dim() + 1
