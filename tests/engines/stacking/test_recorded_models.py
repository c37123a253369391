"""Stacks of every kind of model in a recorded loop: with the values of single steps, or refused with a reason."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.core.client import Hooks
from paceline.core.generators import nested
from paceline.core.layout import Layout
from paceline.core.params import Resident
from paceline.core.samples import ClientData
from paceline.core.training import Job
from paceline.engines.stacking import Solver, replay
from paceline.engines.stacking.replay import Recording
from tests.engines.stacking import graphs
from tests.engines.stacking.test_models import LABELS, MODELS, TEXTS, Scaled, Text, dense, inputs

EVEN, RAGGED = (20, 20, 20), (20, 14, 10)

FORMS = ("graph", "graph,compile")


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens to recordings: of the operations, as a GPU makes them; compilation only traces."""
    events: list[str] = []
    record, run = graphs.record, Recording.run

    def counted(self: Recording, other: Any) -> None:
        events.append("replayed")
        run(self, other)

    def kept(self: Recording) -> Any:
        found = record(self)
        events.append("recorded")
        return found

    monkeypatch.setattr(replay, "RECORDED", ("cpu",))
    monkeypatch.setattr(Recording, "record", kept)
    monkeypatch.setattr(Recording, "run", counted)
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    return events


def trained(
    kernels: str,
    build: Callable[[], nn.Module],
    x: Tensor,
    sizes: Sequence[int] = EVEN,
    buffers: Any = "average",
    labels: Tensor = LABELS,
    each: Callable[[int], dict[str, Any]] = lambda number: {},
    rounds: int = 4,
    **options: Any,
) -> tuple[dict[str, str], list[Tensor]]:
    """Train a chunk of clients in some rounds; return the notes, and what each client has afterwards."""
    torch.manual_seed(0)
    model = Resident(module := build(), Layout.of(module, None, buffers))
    start, solver, found = model.snapshot(), Solver(one_step=False, kernels=kernels), []
    for number in range(rounds):
        jobs = []
        for client, size in enumerate(sizes):
            rows = (torch.arange(size) + 7 * number + 20 * client) % len(x)
            order = partial(torch.Generator().manual_seed, 100 * number + client)
            steps = 2 * -(-size // 10)
            chosen: dict[str, Any] = {"hooks": Hooks(), **options, **each(number)}
            job = Job(model, ClientData(x, labels, rows), start, F.cross_entropy, 0.1, steps, 10, order, **chosen)
            job.buffers = {name: value + 0.1 * client for name, value in model.initial_buffers.items()} or None
            jobs.append(job)
        with nested(0):
            for job, answer in zip(jobs, solver(jobs), strict=True):
                found += [answer.params.vector.clone(), torch.tensor(answer.loss), *(job.buffers or {}).values()]
        start = start + 0.01 * (number + 1)
    return solver.notes, found


def assert_recorded(kernels: str, recorded: list[str], *args: Any, **options: Any) -> None:
    """Assert that the loop is recorded and replayed, with the values of single steps."""
    _, wanted = trained("plain", *args, **options)
    notes, found = trained(kernels, *args, **options)
    assert notes == {}
    assert recorded.count("replayed") >= 2
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def assert_refused(reason: str, kernels: str, recorded: list[str], *args: Any, **options: Any) -> None:
    """Assert that the loop is not recorded and the clients are stacked with the bits of single steps."""
    _, wanted = trained("plain", *args, **options)
    notes, found = trained(kernels, *args, **options)
    (note,) = notes.values()
    assert note.startswith("train step by step, without a recorded loop: ")
    assert reason in note
    assert recorded == []
    assert all(one.equal(other) for one, other in zip(found, wanted, strict=True))


OWN = (
    "dropout",
    "batchnorm",
    "batchnorm averages",
    "dropout and batchnorm",
    "instancenorm2d",
    "own statistics",
    "lstm",
    "rare words",
)


@pytest.mark.parametrize(("kernels", "name"), [*(("graph", name) for name in OWN), ("graph,compile", "dropout and batchnorm")])
def test_random_numbers_and_statistics_of_single_clients_are_not_recorded(kernels: str, name: str, recorded: list[str]) -> None:
    assert_refused("belong to single clients", kernels, recorded, MODELS[name], inputs(name), RAGGED)


class Centred(nn.Module):
    """Subtracts a buffer that training does not change."""

    def __init__(self) -> None:
        super().__init__()
        self.net = dense()
        self.register_buffer("mean", torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x - self.mean)


def test_buffers_of_single_clients_are_not_recorded(recorded: list[str]) -> None:
    assert_refused("belong to single clients", "graph", recorded, Centred, inputs("dropout"), buffers="local")


LAYERS = ("lstm projected", "rnn relu", "gru cell", "attention biased", "dot products", "bags mean", "frozen lstm", "groupnorm")
CASES = [("graph", RAGGED, name) for name in LAYERS] + [("graph", EVEN, name) for name in ("rnn relu", "attention biased")]
CASES += [("graph,compile", RAGGED, name) for name in ("rnn relu", "attention biased", "bags mean")]


@pytest.mark.parametrize(("kernels", "sizes", "name"), CASES)
def test_layers_without_either_are_recorded(kernels: str, sizes: Sequence[int], name: str, recorded: list[str]) -> None:
    assert_recorded(kernels, recorded, MODELS[name], inputs(name), sizes)


@pytest.mark.parametrize("kernels", FORMS)
def test_random_numbers_that_only_a_hook_draws_are_found(kernels: str, recorded: list[str]) -> None:
    def build() -> nn.Module:
        return Text(nn.RNN(6, 5, batch_first=True), 5)

    def objective(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(F.dropout(module(x), 0.3), y)

    assert_refused("belong to single clients", kernels, recorded, build, TEXTS, hooks=Hooks(objective=objective))


def test_targets_that_do_not_count_are_recorded_and_not_padded(recorded: list[str]) -> None:
    labels = LABELS.clone()
    labels[::3] = -100
    args = ("graph", recorded, dense, inputs("dropout"))
    assert_recorded(*args, labels=labels)
    recorded.clear()
    assert_refused("targets that do not count", *args, RAGGED, labels=labels)


def test_prepared_modules_are_recorded_by_what_prepares_them(recorded: list[str]) -> None:
    def each(number: int) -> dict[str, Any]:
        return {"prepare": Scaled(1.0 + number % 2)}

    assert_recorded("graph", recorded, dense, inputs("dropout"), each=each, rounds=6)
    assert sorted(recorded) == ["recorded"] * 2 + ["replayed"] * 2


class Adjusted:
    """A context whose value changes where nobody can see it."""

    factor = 1.0

    @contextmanager
    def __call__(self, module: nn.Module) -> Iterator[None]:
        with Scaled(self.factor)(module):
            yield


def test_what_prepares_a_module_must_be_constant(recorded: list[str]) -> None:
    adjusted = Adjusted()

    def each(number: int) -> dict[str, Any]:
        adjusted.factor = 1.0 + number
        return {"prepare": adjusted}

    assert_refused("prepare is a Adjusted", "graph", recorded, dense, inputs("dropout"), each=each)


@dataclass(frozen=True)
class Described(Scaled):
    """A context with a part that does not count."""

    about: Any = field(default=None, compare=False)


def test_parts_that_do_not_count_in_comparisons_may_be_anything(recorded: list[str]) -> None:
    described = Described(2.0, nn.Linear(1, 1))
    assert_recorded("graph", recorded, dense, inputs("dropout"), each=lambda number: {"prepare": described})
