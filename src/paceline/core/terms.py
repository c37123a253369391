"""Terms of metrics over the batches of an evaluation, and which targets count: decided here for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from paceline.core.columns import call, columns, length
from paceline.core.errors import ConfigError, DataFormatError
from paceline.core.generators import drawing
from paceline.core.losses import CLASS_LOSSES, VALUE_LOSSES, NamedLoss, counted, scores, target
from paceline.core.metrics import Metric, Primary, chosen, failed, measured, packed, primary
from paceline.core.params import Resident
from paceline.core.samples import ClientData, Problem

__all__ = ["MetricTerms", "check_metrics", "classified", "leading", "main_of"]


class MetricTerms:
    """Terms of a problem's metrics, summed over batches, without those that every evaluation has.

    Args:
        problem: the problem.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem, self.metrics = problem, chosen(problem)
        self.ignored: int | None = getattr(problem, "ignore_index", None)
        self.mask: str | None = getattr(problem, "mask", None)
        self.output: str | int | None = getattr(problem, "output", None)
        self.scaling: tuple[float, float] = getattr(problem, "target_scaling", (0.0, 1.0))
        self.totals: dict[str, dict[str, Tensor]] = {}
        self.counted = False

    @property
    def scores_all(self) -> bool:
        """Whether the task leaves out no targets but negative ones."""
        return self.mask is None and (self.ignored is None or self.ignored < 0)

    def marked(self, targets: Any) -> Tensor:
        """Return the tensor of targets, in which those that do not count are -1, or NaN if they are no whole numbers."""
        y = leading(targets) if self.mask is None else target(targets, self.mask)
        if self.scores_all:
            return y
        kept = counted(targets if self.mask is not None else y, self.ignored, self.mask)
        if kept is None:
            return y
        lost = ~kept.reshape(*kept.shape, *[1] * (y.dim() - kept.dim()))
        return y.masked_fill(lost, float("nan")) if y.is_floating_point() else y.long().masked_fill(lost, -1)

    def judged(self, metric: Metric, outputs: Any, targets: Any) -> tuple[Any, Any]:
        """Return outputs and targets as a metric takes them: as they are, or the tensors of scores and of targets that count.

        Standardised targets and their predictions are returned in their own unit.
        """
        if metric.whole:
            return outputs, targets
        out, y = scores(outputs, self.output), self.marked(targets)
        loss = self.problem.loss
        if isinstance(loss, NamedLoss) and loss.name == "next_token":
            return out[:, :-1].movedim(-1, 1), y[:, 1:]
        if self.scaling != (0.0, 1.0) and y.is_floating_point():
            mean, deviation = self.scaling
            return out.double() * deviation + mean, y.double() * deviation + mean
        return out, y

    def add(self, outputs: Any, targets: Any, counted: bool = False) -> None:
        """Add the terms of a batch.

        Args:
            outputs: outputs of the model.
            targets: targets of the batch.
            counted: whether correct answers per class are counted too.
        """
        self.counted = counted
        for metric in self._asked():
            try:
                terms = metric.terms(*self.judged(metric, outputs, targets))
                total = self.totals.setdefault(metric.figure, {})
                for name, term in terms.items():
                    value = torch.as_tensor(term)
                    value = value.double() if value.is_floating_point() else value.long()
                    total[name] = total[name] + value if name in total else value
            except Exception as error:
                raise failed(metric, "terms", error) from error

    def _asked(self) -> list[Metric]:
        return [metric for metric in self.metrics if not (metric.counted and self.counted)]

    @property
    def missing(self) -> bool:
        """Whether metrics have no terms because nothing was scored."""
        return not self.totals and bool(self.metrics)

    def shape(self, model: Resident, data: ClientData, outputs: Callable[[nn.Module, Any], Any] | None) -> None:
        """Set the terms to zeros, in the shapes that they have for any other sample of the task."""
        rows = torch.arange(min(2, length(data.y)), device=data.index.device)
        with drawing(0, model.device):  # does not affect the random stream of the evaluation
            for x, y in ClientData(data.x, data.y, rows).batches(2):
                out = call(model.module, x) if outputs is None else outputs(model.module, x)
                self.add(out, y, counted=classified(self.problem, y))
        if not self.totals and any(not metric.counted for metric in self._asked()):
            raise ConfigError(f"{self.metrics[0].figure} cannot be computed without samples; give this client at least one")
        self.totals = {figure: {n: torch.zeros_like(v) for n, v in terms.items()} for figure, terms in self.totals.items()}

    def into(self, sums: dict[str, Any]) -> dict[str, Any]:
        """Return the sums of an evaluation with the terms."""
        return {**sums, "metrics": {figure: packed(terms) for figure, terms in self.totals.items()}} if self.totals else sums


def leading(tree: Any) -> Tensor:
    """Return the tensor that is judged: the scores of outputs, see `scores`, or the first tensor of several.

    Example:
        >>> leading({"hidden": torch.ones(2), "logits": torch.zeros(1)}), leading((torch.ones(1), torch.zeros(1)))
        (tensor([0.]), tensor([1.]))
    """
    if isinstance(tree, Tensor):
        return tree
    try:
        return scores(tree)
    except ConfigError:
        if not isinstance(tree, dict | list | tuple) or not tree:
            raise
    return leading(next(iter(tree.values() if isinstance(tree, dict) else tree)))


def classified(problem: Problem, y: Any) -> bool:
    """Return whether targets are class indices, of which the scores have one channel each."""
    if not problem.num_classes or not isinstance(y, Tensor) or y.is_floating_point():
        return False
    return not isinstance(problem.loss, NamedLoss) or problem.loss.name in CLASS_LOSSES


def main_of(problem: Problem, targets: Any) -> Primary:
    """Return the figure by which a problem's runs are judged: of its first metric, otherwise accuracy, or the loss.

    Args:
        problem: the problem.
        targets: some of its targets.
    """
    return primary(chosen(problem), classified(problem, targets) or getattr(problem, "objective", None) is not None)


@torch.no_grad()
def check_metrics(task: Any, module: nn.Module) -> None:
    """Compute the metrics of a task on two samples.

    Args:
        task: the task.
        module: its module, on the CPU.

    Raises:
        DataFormatError: outputs and targets do not fit a metric.
        ConfigError: a metric does not return its main figure, or fails.
    """
    terms, rows = MetricTerms(task), torch.arange(min(2, length(task.train.y)))
    if not terms.metrics or getattr(task, "objective", None) is not None:
        return
    for metric in terms.metrics:
        _check_kind(metric, terms, task)
    mode = module.training
    with drawing(0):
        x, y = ClientData(task.train.x, task.train.y, rows).at(rows)
        terms.add(call(module.eval(), x), y)
        module.train(mode)
    measured(terms.into({}), terms.metrics)


def _check_kind(metric: Metric, terms: MetricTerms, task: Any) -> None:
    """Raise `DataFormatError` for a metric of classes on targets that are numbers, or one of numbers on classes."""
    if metric.judges == "anything" or metric.whole:
        return
    name = task.loss.name if isinstance(task.loss, NamedLoss) else ""
    if metric.judges == "values":
        wrong = "classes" if name in CLASS_LOSSES else "labels" if name == "bce" else ""
    else:
        wrong = "numbers" if name in VALUE_LOSSES or _are_numbers(task.train.y, terms, metric.judges == "labels") else ""
    if wrong:
        raise DataFormatError(
            f"{metric.figure} is a metric of {metric.judges}, but the targets are {wrong}{f' (loss {name})' if name else ''}; choose a "
            "metric for this kind of task (paceline metrics), or write one"
        )


def _are_numbers(targets: Any, terms: MetricTerms, soft: bool) -> bool:
    """Return whether there are targets that count and are neither class indices nor labels of 0 and 1, or between them if `soft`."""
    if any(not isinstance(part, Tensor) for _, part in columns(targets)):
        return False
    y = terms.marked(targets)
    return y.is_floating_point() and bool((y > 1).any() if soft else ((y != 0) & (y != 1) & (y >= 0)).any())
