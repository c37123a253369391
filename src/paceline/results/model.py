"""The models of a finished run, as modules of their own: the global one, and a client's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from paceline.core.engine import Call
from paceline.core.errors import ConfigError
from paceline.core.evaluation import Evaluation
from paceline.core.method import Method
from paceline.core.params import Params
from paceline.core.process_state import process_state
from paceline.core.random import derive
from paceline.core.task import Task
from paceline.core.training import answer
from paceline.results.card import Card
from paceline.results.predictor import Predictor
from paceline.store.weights import save_weights

if TYPE_CHECKING:
    from paceline.runner import Run
    from paceline.store import RunFolder

__all__ = ["ELSEWHERE", "FinalModel", "check_global", "global_module", "own_module", "personal_module"]

ELSEWHERE = "the clients' own models are stored at the sites of the federation, not on this machine"


@dataclass(frozen=True)
class FinalModel:
    """How a result's models are made, when they are asked for.

    Args:
        params: returns the final parameters.
        whole: returns the global model as a module, or raises `ConfigError` where there is none.
        personal: returns a client's own model as a module.
        card: returns the description of the model.
    """

    params: Callable[[], Params]
    whole: Callable[[], nn.Module]
    personal: Callable[[int], nn.Module]
    card: Callable[[], Card]

    def predictor(self, client: int | None = None, where: str = "the model") -> Predictor:
        """Return the global model, or a client's own, with what is needed to predict from raw data.

        Args:
            client: the client whose own model it is.
            where: origin of the model, for messages.
        """
        module = self.whole() if client is None else self.personal(client)
        return Predictor(self.card().model_copy(update={"client": client, "whole": True}), module, where)

    @staticmethod
    def of(run: Run) -> FinalModel:
        """Return the models of a run in this process."""
        return FinalModel(
            params=lambda: run.method.model(run.state),
            whole=lambda: _whole(run),
            personal=lambda client: personal_module(run, client),
            card=lambda: Card.of(run.task, run.config, run.method.has_model),
        )

    def save(self, folder: RunFolder) -> None:
        """Save the model in a run's folder: all tensors of the module, or what the clients share, and its description."""
        card = self.card()
        save_weights(folder.model, self.whole().state_dict() if card.whole else dict(self.params().items()))
        card.write(folder.path)


def _whole(run: Run) -> nn.Module:
    check_global(run.method)
    return global_module(run.task, run.evaluated or run.method.model(run.state), run.config.seed)


def check_global(method: Method) -> None:
    """Raise `ConfigError` for a method without a global model."""
    if not method.has_model:
        raise ConfigError(f"{type(method).__name__} has no global model; each client has its own: result.model(client=0)")


@torch.no_grad()
def global_module(task: Task, params: Params, seed: int) -> nn.Module:
    """Return the task's module with these parameters, in evaluation mode, on the CPU.

    What of the module is not in `params` (frozen parameters, counters) is as it was at the start of a run with this seed.
    """
    module = task.build(derive(seed, "init"))
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, value in params.items():
        tensors[name].copy_(value)
    return module.eval()


def personal_module(run: Run, client: int) -> nn.Module:
    """Return the model by which a client was evaluated at the end of a run, in evaluation mode, on the CPU.

    Raises `ConfigError` for a client that does not exist, for a run whose clients are elsewhere, and for a method
    whose clients have no model.
    """
    if not 0 <= client < run.config.clients:
        raise ConfigError(f"client {client} does not exist; clients are 0 to {run.config.clients - 1}")
    worker = getattr(run.fed.engine, "here", None)
    if worker is None or run.config.engine == "grpc":
        raise ConfigError(ELSEWHERE)
    found: list[nn.Module] = []

    def ask(request: Any) -> Any:
        reply = answer(request)
        if isinstance(request, Evaluation):
            found.append(own_module(request))
        return reply

    ((message, _),) = run.method.personal(run.state, [client])
    nowhere: Any = None
    call = Call("evaluate_clients", message, (client,), run.round, "0/method.evaluate_clients/1", nowhere)
    with process_state(derive(run.config.seed, "personal"), run.config.threads, run.config.precision):
        if client in run.store:
            worker.restore({client: run.store[client]})
        before, worker.round = worker.round, run.round  # clients may have other samples in other rounds
        try:
            me = worker.client(call, client)
            me.ask = ask
            me.redraw()
            run.method.assess(me, message, me.judged_by())
        finally:
            worker.round = before
            worker.rollback()
            worker.memories.pop(client, None)
    if not found:
        raise ConfigError(f"clients of {type(run.method).__name__} have no model of their own; use result.model()")
    return found[-1]


def own_module(request: Evaluation) -> nn.Module:
    """Return a copy of the module that was evaluated; its tensors share nothing with the worker's."""
    request.model.load(request.params)
    module = copy.deepcopy(request.model.module).cpu()
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()
        tensor.grad = None
    return (module if request.outputs is None else _Scored(module, request.outputs)).eval()


class _Scored(nn.Module):
    """A module whose scores are another function of it than its outputs."""

    def __init__(self, module: nn.Module, outputs: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.outputs = module, outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of inputs."""
        return self.outputs(self.module, x)
