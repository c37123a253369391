"""Run the jobs of a chunk of clients: as one batch, as a stack, or one at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.core.columns import Samples, columns
from paceline.core.errors import PacelineError
from paceline.core.evaluation import Evaluation, evaluate_together
from paceline.core.generators import GeneratorWatch, nested
from paceline.core.params import Resident
from paceline.core.placement import upload
from paceline.core.profiling import spent
from paceline.core.samples import ClientData
from paceline.core.training import Job, LoopRequest, Trained, diverged
from paceline.engines.stacking.hooks import Unstackable, signature
from paceline.engines.stacking.kernels import Kernels, using
from paceline.engines.stacking.layers import traits_of
from paceline.engines.stacking.lazy import Lazy, Rows
from paceline.engines.stacking.one_batch import OneBatch, one_batch
from paceline.engines.stacking.replay import Replays
from paceline.engines.stacking.stack import Changes
from paceline.engines.stacking.tasks import RequestFailed

__all__ = ["Solver", "few", "ragged", "unstackable"]

_PREPARED = "their module is prepared for one client, with alone=True or with frozen weights of a sub-model"
_LIMITED = "their training ends early by the time that it takes, which is measured"
_DRAWS = "it draws random numbers, for which each client has its own stream"


def unstackable(module: nn.Module) -> str | None:
    """Return why a module cannot train stacked, judged from its layers; None if no reason is known."""
    for part in module.modules():
        if isinstance(own := getattr(part, "not_stackable", None), str):
            return own
    return None


def ragged(*trees: Samples) -> str | None:
    """Return why batches of several clients cannot be stacked; None if their samples have one shape."""
    if all(getattr(column, "uniform", True) for tree in trees for _, column in columns(tree)):
        return None
    return "its samples have different lengths"


def few(data: ClientData) -> Samples:
    """Return the inputs of up to two samples of a client."""
    return data.at(data.index[:2])[0]


_NONE = (None, None, None, None, None, None)


class Solver:
    """Runs jobs, together where possible.

    Args:
        one_step: run one-step clients as one batch.
        kernels: how stacks are computed, see `Kernels.parse`.
    """

    def __init__(self, one_step: bool = True, kernels: str = "plain") -> None:
        self.one_step = one_step
        self.use(kernels)
        self._notes: dict[str, str] = {}
        self.faults = 0
        """How many of the notes are errors that do not say that something cannot be stacked, such as lack of memory."""
        self._refused: set[Any] = set()
        self._known: tuple[torch.Tensor, bool] | None = None
        self._fit: dict[int, tuple[Resident, str | None]] = {}

    def use(self, kernels: str) -> None:
        """Compute stacks in other forms from now on."""
        if kernels != getattr(self, "_named", None):
            self._named, self.kernels = kernels, Kernels.parse(kernels)
            self._replays = Replays(self.kernels)

    @property
    def notes(self) -> dict[str, str]:
        """Reasons why jobs could not be stacked, or not recorded, by the name of the hook or module."""
        return {**self._replays.notes, **self._notes}

    def __call__(self, jobs: Sequence[Any]) -> list[Any]:
        """Return the results of the requests, in order; `RequestFailed` for a request that failed."""
        answers: list[Any] = [None] * len(jobs)
        groups: dict[Any, list[int]] = {}
        asked = [place for place, job in enumerate(jobs) if isinstance(job, Evaluation)]
        for place, sums in zip(asked, _evaluated([jobs[p] for p in asked]), strict=True):
            answers[place] = sums
        for place, job in enumerate(jobs):
            if isinstance(job, Evaluation):
                continue
            if not isinstance(job, Job):
                answers[place] = _train_one(job)
                continue
            key = self._key(job) if job.steps else None
            if key is None or key in self._refused:
                answers[place] = _train_one(job)
            else:
                groups.setdefault(key, []).append(place)
        for key, places in groups.items():
            places.sort(key=lambda p: (-jobs[p].steps, -len(jobs[p].data)))
            for place, answer in zip(places, self._together(key, [jobs[p] for p in places]), strict=True):
                answers[place] = answer
        return answers

    def single(self, request: LoopRequest) -> Any:
        """Return the result of a request that must run on its own, and note the reason."""
        if isinstance(request, Job) and request.steps:
            self._notes.setdefault(type(request.model.module).__name__, _LIMITED if request.limit else _PREPARED)
        return request.run()

    def _key(self, job: Job) -> Any:
        """Return the key that jobs must share to run as one."""
        hooks, optimizer = job.hooks, job.optimizer
        key = (id(job.model), id(job.data.x), job.batch_size, optimizer.rule, signature(job.loss), job.prepare)
        parts = (hooks.correct, hooks.direction, hooks.objective, hooks.after, hooks.augment, optimizer.schedule)
        return key if parts == _NONE else (*key, *map(signature, parts))

    def whole(self, jobs: Sequence[Job]) -> tuple[Rows, torch.Tensor] | None:
        """Return the changes and losses of jobs with the same key; None if they cannot run as one.

        The caller must ensure that nothing was drawn from a global random generator.
        """
        key = self._key(jobs[0])
        if key in self._refused or len(jobs) < 2:
            return None
        return self._whole(key, jobs, None)

    def _unscored(self, targets: Any) -> bool:
        if not isinstance(targets, Tensor):
            return False
        if self._known is None or self._known[0] is not targets:
            self._known = (targets, not targets.is_floating_point() and bool((targets < 0).any()))
        return self._known[1]

    def _unfit(self, job: Job) -> str | None:
        """Return why a job's model cannot train stacked; each model is examined once."""
        if id(job.model) not in self._fit:
            reason = ragged(job.data.x, job.data.y) or unstackable(job.model.module)
            self._fit[id(job.model)] = (job.model, reason)
        return self._fit[id(job.model)][1]

    def _together(self, key: Any, jobs: list[Job]) -> list[Any]:
        if len(jobs) == 1:
            return [_train_one(jobs[0])]
        try:
            with nested(0, jobs[0].model.device):
                solved = self._whole(key, jobs, GeneratorWatch(jobs[0].model.device))
        except PacelineError as error:
            return [RequestFailed(error)] * len(jobs)
        return [_train_one(job) for job in jobs] if solved is None else _answers(jobs, *solved)

    def _whole(self, key: Any, jobs: Sequence[Job], watch: GeneratorWatch | None) -> tuple[Rows, torch.Tensor] | None:
        try:
            if (reason := self._unfit(jobs[0])) is not None:
                raise Unstackable(reason)
            unscored = jobs[0].loss is F.cross_entropy and self._unscored(jobs[0].data.y)
            with spent.on("local steps"), jobs[0].model.autocast(), using(self.kernels), jobs[0].prepared():
                if self.one_step and not unscored and one_batch(jobs) and not traits_of(jobs[0].model, jobs[0].data).exact:
                    whole = OneBatch(jobs)
                    _refuse_draws(watch)
                    return whole, whole.losses.detach()
                stack = self._replays.train(key, _name(jobs[0]), jobs, unscored)
                _refuse_draws(watch)
            stack.finish()
            changes = Changes(stack.at.vector.sub_(stack.starts))
            steps = upload(torch.tensor([job.steps for job in jobs]), stack.totals.device)
            return changes, stack.totals / steps
        except PacelineError:
            raise
        except Exception as error:
            # torch.func raises many error types for code that cannot be stacked; a real fault is raised again when run alone
            self._refused.add(key)
            self.faults += _is_fault(error)
            self._notes.setdefault(_name(jobs[0]), _reason(error))
            return None


def _answers(jobs: Sequence[Job], rows: Rows, losses: torch.Tensor) -> list[Any]:
    """Return each client's result; an error for clients with a non-finite loss."""
    answers: list[Any] = []
    for k, (job, loss) in enumerate(zip(jobs, losses.tolist(), strict=True)):
        if not math.isfinite(loss):
            answers.append(RequestFailed(diverged(loss * job.steps, job)))
            continue
        params = Lazy(rows, k, job.start.layout, 1.0, ((1.0, job.start.vector),))
        answers.append(Trained(params, job.steps, job.samples(), loss))
    return answers


def _evaluated(requests: list[Any]) -> list[Any]:
    if not requests:
        return []
    try:
        return evaluate_together(requests)
    except Exception as error:
        return [RequestFailed(error)] * len(requests)


def _train_one(job: LoopRequest) -> Any:
    try:
        return job.run()
    except Exception as error:
        return RequestFailed(error)


def _refuse_draws(watch: GeneratorWatch | None) -> None:
    if watch is not None and watch.advanced():
        raise Unstackable(_DRAWS)


def _name(job: Job) -> str:
    """Return the name of a job's hook, otherwise of its model, for messages."""
    hooks = job.hooks
    return getattr(hooks.direction or hooks.correct or hooks.objective, "__qualname__", type(job.model.module).__name__)


_STACKING = ("vmap", "functorch", "torch.func", "batching rule", "randomness", "data-dependent", ".item()")
"""Words of torch's errors for code that cannot be stacked."""


def _is_fault(error: Exception) -> bool:
    """Return whether an error has another cause than that something cannot be stacked, such as the device or its memory."""
    return not isinstance(error, Unstackable) and not any(word in str(error) for word in _STACKING)


def _reason(error: Exception) -> str:
    text = str(error)
    if "randomness" in text:
        return _DRAWS
    if "data-dependent control flow" in text:
        return "it branches on a tensor's value"
    if ".item()" in text:
        return "it reads a tensor's value"
    return (text.strip() or type(error).__name__).splitlines()[0][:200]
