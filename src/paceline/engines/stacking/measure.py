"""Choose the number of clients per stack from a short measurement on the real model and data."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from paceline.core.client import ClientData
from paceline.core.columns import kind_of
from paceline.core.generators import drawing
from paceline.core.params import Params, Resident
from paceline.core.placement import free_memory
from paceline.core.training import Job, train
from paceline.engines.stacking.kernels import Kernels
from paceline.engines.stacking.products import available
from paceline.engines.stacking.solver import Solver, few, ragged, unstackable

__all__ = ["Choice", "choose", "compiled", "fastest_forms"]

_SIZES = (4, 8, 16, 32, 64, 128)
_STEPS = 2
_BYTES = 256 << 20
"""Limit on the stacked vectors of one chunk, in bytes: parameters, gradients and temporary copies."""

_TURNS = 6
_SECONDS = 0.1
"""Seconds after which a size is the last one to be tried, and is run only once."""

_SHORT = 0.02
"""Seconds of training below which a cohort of clients with one step each is one chunk: the fixed cost of a second chunk is more
than another worker saves."""

_PART = 0.6
"""Part of a GPU's free memory that a stack may take: the rest is for sums, evaluations and what the allocator cannot reuse."""

_NEAR = 1.25
"""Tolerance for sizes nearly as fast as the fastest, about the noise of a measurement: the largest is used, because the fixed
cost of a chunk is not measured."""

_NEAR_ONE = 2.0
"""The same for clients with one step: most methods run it as one batch, which is not measured, and only the largest is extended."""

_LARGE = 1 << 16
"""Weights of a linear layer from which own kernels are tried."""

_WARM, _CLEAR = 3, 1.03
"""First runs of a form that do not count, in which it is recorded and compared; how much faster another form must be."""

_GAIN, _COMPILING = 0.3, 40.0
"""Part of a recorded step that compilation is assumed to save, and seconds that it is assumed to take."""

_KNOWN: dict[Any, Choice] = {}
"""Choices made in this process: a second run with the same key is not measured again."""


@dataclass(frozen=True)
class Choice:
    """How the clients of a run train.

    Args:
        chunk: clients per stack; 1 trains one client at a time.
        reason: short explanation for the user.
        kernels: how stacks are computed, see `Kernels`.
        seconds: measured time of a step of one client in a stack; 0 if unknown.
        failed: whether the measurement failed for another reason than that the model cannot be stacked.
    """

    chunk: int
    reason: str
    kernels: str = "plain"
    seconds: float = 0.0
    failed: bool = False


def choose(
    model: Resident,
    start: Params,
    problem: Any,
    clients: Sequence[ClientData],
    cohort: int,
    always: bool = False,
    parts: int = 2,
    chunk: int | None = None,
) -> Choice:
    """Return how many clients to stack, and how.

    Args:
        model, start: the module that trains, and its initial parameters [d].
        problem: task settings: loss, learning rate and batch size.
        clients: data of some clients of the run, only those with samples.
        cohort: clients per round.
        always: stack whenever possible, even if it is slower.
        parts: chunks that a cohort has at least, so that workers can share it.
        chunk: the only size to try, if it is given.
    """
    room = free_memory(model.device)
    space = _BYTES if room is None else room // 4
    most = chunk or max(min(cohort // parts, space // (24 * start.layout.size), len(clients)), 2 if always else 0)
    reason = unstackable(model.module) or (ragged(clients[0].x, clients[0].y) if clients else None)
    if reason is not None:
        return Choice(1, reason)
    if most < 2 or cohort < 2 or len(clients) < 2:
        return Choice(
            1,
            f"a cohort of {cohort} is too small, or the model of {start.layout.size} values too large, for stacking",
        )
    sizes = [chunk] if chunk else [s for s in _SIZES if s < most] + [min(most, _SIZES[-1])]
    key = (
        type(model.module),
        start.layout.digest,
        kind_of(few(clients[0])),
        problem.batch_size,
        sizes[-1],
        str(model.device),
        always,
        chunk,
    )
    with drawing(0, model.device):
        model.load(start)
        if key not in _KNOWN:
            _KNOWN[key] = _measure(model, start, problem, clients, sizes, always)
        found = _KNOWN[key]
    short = 0.0 < found.seconds * _STEPS * cohort < _SHORT  # of one step, `seconds` are a part
    if chunk or not short or not _one_step(problem, clients) or found.chunk < sizes[-1] or model.device.type != "cpu":
        return found
    return replace(found, chunk=max(found.chunk, min(cohort, space // (24 * start.layout.size))))


def _one_step(problem: Any, clients: Sequence[ClientData]) -> bool:
    """Return whether a pass over the data of each client is one step."""
    return all(len(data) <= problem.batch_size for data in clients)


def _measure(
    model: Resident,
    start: Params,
    problem: Any,
    clients: Sequence[ClientData],
    sizes: Sequence[int],
    always: bool,
) -> Choice:
    def jobs(count: int) -> list[Job]:
        picked = [clients[k % len(clients)] for k in range(count)]
        size = problem.batch_size
        steps = [min(_STEPS, -(-len(d) // size)) for d in picked]
        return [
            Job(model, d, start, problem.loss, problem.lr, s, size, torch.Generator) for d, s in zip(picked, steps, strict=True)
        ]

    few = jobs(min(sizes[0], 4))
    solvers = {count: Solver(one_step=False) for count in sizes}
    if (room := free_memory(model.device)) is not None:
        sizes = _fitting(sizes, room, model.device, partial(solvers[sizes[0]], jobs(sizes[0])))
    works: dict[int, Callable[[], object]] = {1: lambda: [train(job) for job in few]}
    works |= {count: partial(solvers[count], jobs(count)) for count in sizes}
    each = _seconds(works, {1: len(few)}, model.device)
    alone, failed = each.pop(1), Choice(1, "no stack was measured", failed=True)
    for count in [count for count in each if solvers[count].notes]:  # for example for lack of memory
        failed = Choice(1, next(iter(solvers[count].notes.values())), failed=solvers[count].faults > 0)
        del each[count]
    if not each:
        return failed
    fastest = min(each.values())
    if fastest > 0.95 * alone and not always:
        tried = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}"
        return Choice(1, f"stacks of {tried} are no faster on this machine")
    near = _NEAR_ONE if _one_step(problem, clients) else _NEAR
    best = max(count for count, seconds in each.items() if seconds <= near * fastest)
    reason = f"a stack takes {each[best] / alone:.2f} of the time per client, measured"
    if model.device.type != "cuda":  # oneDNN's grouped convolutions are faster than views, and there is nothing to record
        return Choice(best, reason, seconds=each[best] / _STEPS)
    kernels, seconds = fastest_forms(model, jobs(best))
    return Choice(best, f"{reason}; kernels {kernels}", str(kernels), seconds / (best * _STEPS))


def fastest_forms(model: Resident, jobs: Sequence[Job]) -> tuple[Kernels, float]:
    """Return the fastest forms of a stack of these jobs, and its seconds.

    Tried are a recording, then convolutions by own kernels of Triton, and large linear layers beside them; without Triton,
    convolutions from views. Convolutions change together, because each form reads its images as the same form writes them.

    Args:
        model: the module that trains.
        jobs: a chunk.
    """
    own, parts = available(model.device.type), list(model.module.modules())
    convolutions = frozenset(tuple(p.weight.shape) for p in parts if isinstance(p, nn.Conv2d) and p.groups == 1)
    linears = frozenset(tuple(p.weight.shape) for p in parts if isinstance(p, nn.Linear) and p.weight.numel() >= _LARGE)
    found, seconds = _faster([Kernels(), Kernels(graph=True)], jobs, model.device)  # without a recording, launches cost most
    if convolutions:
        other = replace(found, triton=convolutions) if own else replace(found, views=convolutions)
        found, seconds = _faster([found, other], jobs, model.device)
    if linears and own:
        found, seconds = _faster([found, replace(found, triton=found.triton | linears)], jobs, model.device)
    return found, seconds


def _faster(forms: Sequence[Kernels], jobs: Sequence[Job], device: torch.device) -> tuple[Kernels, float]:
    """Return the fastest of some forms, and its seconds; the first one, unless another is clearly faster."""
    solvers = [Solver(one_step=False, kernels=str(form)) for form in forms]
    best = [float("inf")] * len(forms)
    for turn in range(_TURNS + _WARM):
        for place, solver in enumerate(solvers):
            _finish(device)
            started = time.perf_counter()
            solver(jobs)
            _finish(device)
            if turn >= _WARM:
                best[place] = min(best[place], time.perf_counter() - started)
    usable = [place for place, solver in enumerate(solvers) if place == 0 or not solver.notes]
    fastest = min(usable, key=lambda place: best[place] * (1.0 if place == 0 else _CLEAR))
    return forms[fastest], best[fastest]


def compiled(choice: Choice, work: int) -> bool:
    """Return whether a run is long enough for ``torch.compile``: whether it saves more seconds than it takes.

    Args:
        choice: the measured choice; without seconds, or on a CPU, nothing is compiled.
        work: steps of clients in the run.
    """
    return "graph" in choice.kernels and choice.seconds * work * _GAIN > _COMPILING


def _fitting(sizes: Sequence[int], room: int, device: torch.device, smallest: Callable[[], object]) -> Sequence[int]:
    """Return the sizes whose stacks fit into the memory of a GPU, judged by the peak of the smallest one; that one always."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    smallest()
    each = (torch.cuda.max_memory_allocated(device) - before) / sizes[0]
    return [size for size in sizes if size == sizes[0] or size * each < _PART * room]


def _seconds(works: Mapping[int, Callable[[], object]], clients: Mapping[int, int], device: torch.device) -> dict[int, float]:
    """Return the seconds per client by stack size: the minimum of interleaved runs, so that a disturbance affects all sizes.

    The first run of each size is a warm-up; if it takes long, it is not repeated and larger sizes are skipped. On a CPU with
    one thread, CPU time is measured instead of wall time, to exclude other load on the machine.
    """
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    each: dict[int, float] = {}
    left = list(works)
    for turn in range(_TURNS):
        for size in list(left):
            _finish(device)
            started = clock()
            works[size]()
            _finish(device)
            took = clock() - started
            each[size] = min(took / clients.get(size, size), each.get(size, float("inf")) if turn > 1 else float("inf"))
            if took > _SECONDS and size > 1 and (turn or device.type == "cpu"):  # a GPU loads its kernels in the first turn
                left = [s for s in left if s < size]
                break
    return each


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
