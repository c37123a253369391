"""Evaluation of models: sums that add up over batches and clients, for one client or several in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from paceline.core.columns import call, length
from paceline.core.generators import GeneratorWatch, drawing, nested
from paceline.core.linears import linears
from paceline.core.losses import NamedLoss, counted, scores, target
from paceline.core.metrics import chosen
from paceline.core.params import Params, Resident
from paceline.core.placement import download, free_memory, upload
from paceline.core.profiling import spent
from paceline.core.samples import ClientData, Problem
from paceline.core.terms import MetricTerms, classified

__all__ = ["Evaluation", "evaluate", "evaluate_together"]

BATCH = 500
"""Maximum number of samples per pass, except on a GPU."""

_BYTES = 1 << 23
"""Maximum layer output in bytes per pass on a CPU: larger outputs leave the cache and take twice as long."""

_PART = 16
"""A pass on a GPU has as many samples as fit if the largest layer output may take this part of the free memory."""

_LEAST = 8
"""Minimum number of samples per pass."""


@dataclass
class Evaluation:
    """Request to evaluate a model on one client.

    Args:
        model: the module.
        params: parameters to load.
        problem: loss and number of classes.
        data: samples.
        alone: whether the module's buffers are specific to this client.
        outputs: ``(module, inputs) -> scores`` instead of the module's outputs.
        seed: returns the seed for modules that draw random numbers in evaluation.
    """

    model: Resident
    params: Params
    problem: Problem
    data: ClientData
    alone: bool = False
    outputs: Callable[[nn.Module, Any], Any] | None = None
    seed: Callable[[], int] = int

    def run(self) -> dict[str, Any]:
        """Evaluate this request alone."""
        self.model.load(self.params)
        with nested(self.seed(), self.model.device):
            return evaluate(self.model, self.problem, self.data, outputs=self.outputs)


@torch.no_grad()
def evaluate(
    model: Resident,
    problem: Problem,
    data: ClientData,
    batch_size: int | None = None,
    outputs: Callable[[nn.Module, Any], Any] | None = None,
) -> dict[str, Any]:
    """Evaluate a loaded model: sums of loss and correct answers, counts, both counts per class, and terms of metrics.

    All returned values add up over clients, so they can be computed under secure aggregation. If a sample has a sequence
    of targets, each of them counts; negative ones (such as -100) and those that the task ignores are not scored. Of a task
    without classes, the loss is the only sum, and samples count.

    Args:
        model: module with loaded parameters.
        problem: loss and number of classes.
        data: samples.
        batch_size: maximum number of samples per pass; by default as many as suit the device.
        outputs: ``(module, inputs) -> scores`` instead of the module's outputs.

    Returns:
        ``loss`` (sum), ``correct``, ``count``, ``class_correct`` and ``class_count`` (shape [classes]); if the problem has
        metrics, ``metrics``: `packed` terms of each, by the name of its main figure.
    """
    with spent.on("evaluating"), linears(model.module, min(batch_size or BATCH, len(data)), model.device):
        model.module.eval()
        loss = torch.zeros((), dtype=torch.float64, device=model.device)
        hits = torch.zeros(problem.num_classes, dtype=torch.int64, device=model.device)
        counts, samples, terms = torch.zeros_like(hits), 0, MetricTerms(problem)
        every = terms.scores_all and all_scored(data.y)  # then nothing of a pass is read before the end
        seen: list[tuple[Tensor, Tensor]] = []
        for x, y in data.batches(_fitting(model, data, batch_size, outputs)):
            out = call(model.module, x) if outputs is None else outputs(model.module, x)
            if not classified(problem, y):
                number = _number(problem, y)
                samples += number
                loss += problem.loss(out, y).double() * number if number else 0.0
                if terms.metrics:
                    terms.add(out, y)
                continue
            if every:
                loss += problem.loss(out, y).double() * y.numel()
                flat = y.reshape(-1)
                seen.append((flat, scores(out, terms.output).argmax(1).reshape(-1) == flat))
                if terms.metrics:
                    terms.add(out, y, counted=True)
                continue
            marked = terms.marked(y)
            scored = marked[marked >= 0]
            if len(scored):
                loss += problem.loss(out, y).double() * len(scored)
                counts += torch.bincount(scored, minlength=len(counts))
                hits += torch.bincount(_right(scores(out, terms.output), marked), minlength=len(counts))
                if terms.metrics:
                    terms.add(out, y, counted=True)
        if seen:  # counted at once, as the calls cost more than the counting
            flat, right = (torch.cat(parts).long() for parts in zip(*seen, strict=True))
            counts.index_add_(0, flat, torch.ones_like(flat))
            hits.index_add_(0, flat, right)
        loss, hits, counts = download([loss, hits, counts])
        sums = _sums(float(loss), hits, counts, samples + int(counts.sum()))
        if not terms.metrics:
            return sums
        if terms.missing:
            terms.shape(model, data, outputs)
        return terms.into(sums)


def _number(problem: Problem, y: Any) -> int:
    """Return how many targets of a task without classes count: samples, or the targets that it does not ignore."""
    ignored, mask = getattr(problem, "ignore_index", None), getattr(problem, "mask", None)
    kept = counted(y, ignored, mask)
    if isinstance(problem.loss, NamedLoss) and problem.loss.name == "next_token":  # the mean over the tokens after the first
        tokens = target(y, mask)
        known = tokens >= 0 if ignored is None else tokens != ignored
        kept = (known if kept is None else kept & known)[:, 1:]
    return length(y) if kept is None else int(kept.sum())


def evaluate_together(requests: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Evaluate the same parameters on the data of several clients, in joint passes.

    Runs the requests one by one if the loss is not a known mean over samples, or if the model draws random numbers.

    Returns:
        the sums of each request, as in `evaluate`.
    """
    first = requests[0]
    same = all(r.params is first.params and r.model is first.model and r.data.x is first.data.x for r in requests)
    plain = isinstance(first.data.y, Tensor) and first.data.y.dim() == 1 and first.problem.loss is F.cross_entropy
    if not same or not plain or not all_scored(first.data.y) or any(r.outputs is not None for r in requests):
        return [request.run() for request in requests]
    with spent.on("evaluating"), torch.no_grad(), nested(0, first.model.device):
        watch = GeneratorWatch(first.model.device)
        sums = _evaluate_all(requests)
        drew = watch.advanced()
    return [request.run() for request in requests] if drew else sums


def all_scored(targets: Any) -> bool:
    """Return whether no target of a task is negative; each tensor is read once."""
    if not isinstance(targets, Tensor):
        return False
    if targets not in _SCORED:
        _SCORED[targets] = not len(targets) or not bool((targets < 0).any())
    found: bool = _SCORED[targets]
    return found


_SCORED = WeakIdKeyDictionary()
"""Answers of `all_scored` for the targets of the tasks that are in use."""


def _evaluate_all(requests: Sequence[Evaluation]) -> list[dict[str, Any]]:
    first, classes, count = requests[0], requests[0].problem.num_classes, len(requests)
    model, device = first.model, first.model.device
    model.load(first.params)
    model.module.eval()
    sizes = torch.tensor([len(r.data) for r in requests])
    rows = torch.cat([r.data.index for r in requests])
    owners = upload(torch.repeat_interleave(torch.arange(count), sizes), device)
    loss = torch.zeros(count, dtype=torch.float64, device=device)
    hits = torch.zeros(count * classes, dtype=torch.int64, device=device)
    counts = torch.zeros_like(hits)
    size, apart = _fitting(model, first.data, None, None), any(not metric.counted for metric in chosen(first.problem))
    terms = [MetricTerms(request.problem) for request in requests] if apart else []
    for (_, (x, y)), owner in zip(first.data.each(iter(torch.split(rows, size))), torch.split(owners, size), strict=True):
        out = call(model.module, x)
        each = F.cross_entropy(out, y, reduction="none")
        loss.index_add_(0, owner, each.reshape(len(y), -1).double().mean(1))
        cell = (owner.reshape(-1, *[1] * (y.dim() - 1)).expand_as(y) * classes + y).reshape(-1)
        counts.index_add_(0, cell, torch.ones_like(cell))
        hits.index_add_(0, cell, (out.argmax(1).reshape(-1) == y.reshape(-1)).long())
        if apart:
            whose, many = torch.unique_consecutive(owner, return_counts=True)
            split = many.tolist()
            for k, scores, targets in zip(whose.tolist(), torch.split(out, split), torch.split(y, split), strict=True):
                terms[k].add(scores, targets, counted=True)
    for one, request in zip(terms, requests, strict=False):
        if one.missing:
            one.shape(model, request.data, None)
    loss, table, right = download([loss, counts.view(count, classes), hits.view(count, classes)])
    found = [
        _sums(value, right[k].clone(), table[k].clone(), len(request.data))
        for k, (request, value) in enumerate(zip(requests, loss.tolist(), strict=True))
    ]
    return [one.into(sums) for one, sums in zip(terms, found, strict=True)] if apart else found


def _fitting(model: Resident, data: ClientData, most: int | None, outputs: Callable[[nn.Module, Any], Any] | None) -> int:
    """Return the number of samples per pass, at most `most`, based on the layer outputs for two of them."""
    room = free_memory(model.device)
    if not len(data) or (room is None and model.device.type != "cpu"):
        return most or BATCH
    known, make = model.widths, (data.x.shape[1:] if isinstance(data.x, Tensor) else id(data.x), outputs is None)
    if make not in known:
        x, widest = data.at(data.index[:2])[0], [1]

        def note(module: nn.Module, given: Any, out: Any) -> None:
            widest.append(out.nbytes if isinstance(out, Tensor) else 1)

        hooks = [part.register_forward_hook(note) for part in model.module.modules()]
        try:
            with drawing(0, model.device):  # does not affect the random stream of the evaluation
                _ = call(model.module, x) if outputs is None else outputs(model.module, x)
        finally:
            for hook in hooks:
                hook.remove()
        known[make] = max(widest) // length(x)
    each = max(known[make], 1)
    return (
        min(most or BATCH, max(_LEAST, _BYTES // each))
        if room is None
        else min(most or len(data), max(_LEAST, room // _PART // each))
    )


def _right(out: Tensor, y: Tensor) -> Tensor:
    """Return the correctly predicted targets; negative targets never match."""
    flat = y.reshape(-1)
    return flat[out.argmax(1).reshape(-1) == flat]


def _sums(loss: float, hits: Tensor, counts: Tensor, samples: int) -> dict[str, Any]:
    return {"loss": loss, "correct": int(hits.sum()), "count": samples, "class_correct": hits, "class_count": counts}
