"""The part that every engine shares: a worker keeps one resident model and runs client functions one by one."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from paceline.call import Call, Receipt, wire_size
from paceline.client import Client, ClientData, Memory
from paceline.client import evaluate as evaluate_on
from paceline.devices import Cost, times
from paceline.errors import CheckpointError, ClientError, UnknownNameError
from paceline.method import client_functions
from paceline.params import Layout, Params, Resident
from paceline.rng import derive

__all__ = ["Setup", "Worker"]


@dataclass
class Setup:
    """What a worker is built from: small, or shared with its parent.

    Args:
        programs: the method and the protocols whose functions may run here, by name.
        task: data, model and loss.
        split: a client's (train, test) rows, by client number.
        num_clients: size of the population.
        fleet: device profiles.
        seed: of the run.
        flops: forward cost of one sample, in FLOPs.
        device: torch device of model and data.
        drop: (round, client, function) -> whether the client vanishes before that function's reply.
        measured: use measured seconds on this machine in place of FLOPs.
        strict: check every step, re-raise errors as they come (the debug engine).
        services: further things that client functions may use, by name (such as the sub-model cutter).
    """

    programs: dict[str, Any]
    task: Any
    split: Callable[[int], tuple[Tensor, Tensor]]
    num_clients: int
    fleet: Any
    seed: int
    flops: float = 0.0
    device: str = "cpu"
    drop: Callable[[int, int, str], bool] | None = None
    measured: bool = False
    strict: bool = False
    services: dict[str, Callable[[Worker], Any]] = field(default_factory=dict)


class Worker:
    """One resident model, the data, and the memories of the clients that ran here."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        task = setup.task
        module = task.build(derive(setup.seed, "init"))
        self.layout = Layout.of(module, task.trainable, task.buffers)
        self.initial = Params.of(module, self.layout)
        self.model = Resident(module, self.layout, setup.device)
        self.model.flops = setup.flops
        self.x, self.y = task.train.x.to(setup.device), task.train.y.to(setup.device)
        self.test = ClientData(
            task.test.x.to(setup.device), task.test.y.to(setup.device), torch.arange(len(task.test), device=setup.device)
        )
        self.example = task.train.x[:1]
        self.functions = {name: client_functions(program) for name, program in setup.programs.items()}
        self.memories: dict[int, Memory] = {}
        self.sessions: dict[int, dict[str, Any]] = {}
        self.services = {name: make(self) for name, make in setup.services.items()}

    def run(self, call: Call) -> Iterator[Receipt | tuple[str, Any]]:
        """Run a call's function on its clients, one after another."""
        functions = self.functions.get(call.program)
        if functions is None or call.function not in functions:
            raise UnknownNameError("client function", call.function, functions or self.functions)
        sink = call.channel.open()
        base = wire_size(call.message)
        for client in call.clients:
            yield self._one(call, client, sink, base)
        partial = sink.partial()
        if partial is not None:
            yield ("partial", partial)

    def client(self, call: Call, client: int, stream: str | None = None, peers: Any = None) -> Client:
        """Return the client as a client function sees it in this call.

        A protocol that wraps a method's function gives that function's own `stream`, and the `peers` that told.
        """
        train, test = self.setup.split(client)
        memory = self.memories.setdefault(client, Memory())
        seed = derive(self.setup.seed, "client", client, call.round, stream or call.stream)
        return Client(
            client,
            call.round,
            seed,
            self.model,
            self.setup.task,
            ClientData(self.x, self.y, train.to(self.x.device)),
            ClientData(self.x, self.y, test.to(self.x.device)),
            memory,
            call.peers.get(client) if peers is None else peers,
            services={**self.services, "worker": self, "call": call, "session": self.sessions.setdefault(client, {})},
            strict=self.setup.strict,
        )

    def note_times(self, me: Client, down: int, up: int) -> None:
        """Remember what a method's function took, where a protocol ran it: its work and its own bytes only."""
        spent = times(self.setup.fleet.profile(me.id, me.round), Cost(me.flops, down, up, None))
        me.memory["_times"] = [spent.compute, spent.network]

    def invoke(self, me: Client, program: str, function: str, message: Any) -> Any:
        """Run one function of a program for `me`; protocols use it to run the method's own."""
        return getattr(self.setup.programs[program], function)(me, message)

    def _one(self, call: Call, client: int, sink: Any, base: int) -> Receipt:
        setup = self.setup
        own = call.each_message.get(client)
        down = base + (wire_size(own) if own is not None else 0)
        profile = setup.fleet.profile(client, call.round)
        name = call.function if call.program == "method" else f"{call.program}.{call.function}"
        if setup.drop is not None and setup.drop(call.round, client, name):
            return Receipt(client, dropped="gone", bytes_down=down)
        me = self.client(call, client)
        message = call.message if own is None else {"all": call.message, "own": own}
        started = time.perf_counter()
        try:
            reply = self.invoke(me, call.program, call.function, message)
            up = sink.size(reply)
            seconds = time.perf_counter() - started if setup.measured else None
            spent = times(profile, Cost(me.flops, down, up, seconds))
            late = call.deadline is not None and spent.compute + spent.network > call.deadline
            value = None if late else sink.add(client, reply, derive(me.seed, "encode"))
        except Exception as error:
            if setup.strict:
                cause = f"{type(error).__name__}: {error}"
                job = me.job
                if job is not None and job.batch is not None:
                    x, y = job.batch
                    cause += f"; batch: inputs {tuple(x.shape)}, targets {y.tolist()}"
                raise ClientError(client, call.function, call.round, cause, job and job.step) from error
            return Receipt(client, dropped=_reason(error), bytes_down=down)
        if me.flops and call.program == "method":
            me.memory["_times"] = [spent.compute, spent.network]
        return Receipt(client, value, spent.compute, spent.network, down, up, "late" if late else None)

    # -- memory --------------------------------------------------------------------------------
    def commit(self) -> dict[int, dict[str, Any]]:
        """Make memory changes permanent; return the stores that changed."""
        changed = {c: m.commit() for c, m in self.memories.items() if m.changes}
        self.sessions.clear()
        return changed

    def rollback(self) -> None:
        """Forget memory changes since the last commit, and half-finished protocol sessions."""
        for memory in self.memories.values():
            memory.rollback()
        self.sessions.clear()

    def restore(self, memories: Mapping[int, Mapping[str, Any]]) -> None:
        """Put stored memories back."""
        for client, stored in memories.items():
            if not 0 <= client < self.setup.num_clients:
                raise CheckpointError(f"the checkpoint has a memory of client {client}, of {self.setup.num_clients}")
            self.memories[client] = Memory(stored)

    def evaluate(self, params: Params) -> dict[str, Any]:
        """Evaluate on the central test set."""
        self.model.load(params.to(self.model.device))
        return evaluate_on(self.model, self.setup.task, self.test)


def _reason(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({place.filename.rsplit('/', 1)[-1]}:{place.lineno})"
