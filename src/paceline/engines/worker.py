"""The part that every engine shares: a worker keeps one resident model and runs client functions one by one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from paceline.core.client import Client, ClientData, Memory
from paceline.core.columns import columns, place
from paceline.core.deferred import Held, hold
from paceline.core.engine import Call, Receipt, Sink, delivered
from paceline.core.errors import CheckpointError, ClientError, PacelineError, UnknownNameError
from paceline.core.evaluation import evaluate as evaluate_on
from paceline.core.failures import Declined, class_of, reason_of
from paceline.core.generators import nested
from paceline.core.layout import Layout
from paceline.core.method import client_functions
from paceline.core.metrics import added
from paceline.core.params import Params, Resident
from paceline.core.placement import on_host, upload
from paceline.core.precision import set_precision
from paceline.core.profiling import spent
from paceline.core.protocol import ProtocolSession
from paceline.core.random import derive
from paceline.core.services import Host, Services
from paceline.core.training import answer
from paceline.core.tree import Tree, map_leaves
from paceline.core.wire import wire_size
from paceline.devices import Cost, times, work_time
from paceline.devices.fleet import profiles
from paceline.engines.preview import preview
from paceline.engines.protocol import WorkerContext
from paceline.engines.setup import Setup
from paceline.engines.stacking import Meeting, Solver, Uniform

__all__ = ["Worker"]


class Worker:
    """One resident model, the data, and the memories of the clients that ran here."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        if setup.profiled:
            spent.watch(setup.device)
        task = setup.task
        module = task.build(derive(setup.seed, "init"))
        self.layout = Layout.of(module, task.trainable, task.buffers)
        self.initial = Params.of(module, self.layout)
        self.model = Resident(module, self.layout, setup.device)
        self.model.flops = setup.flops
        self.model.mixed = torch.bfloat16 if setup.precision == "bf16" else None
        set_precision(setup.precision)
        self.x, self.y = place(task.train.x, setup.device), place(task.train.y, setup.device)
        self.test = ClientData(
            place(task.test.x, setup.device),
            place(task.test.y, setup.device),
            torch.arange(len(task.test), device=setup.device),
        )
        self.example = task.train.example
        self.functions = {name: client_functions(program) for name, program in setup.programs.items()}
        self.memories: dict[int, Memory] = {}
        self.sessions: dict[int, ProtocolSession] = {}
        self.solver = Solver(setup.one_step)
        self.round = 1
        """The round of the latest call."""
        self._client_seed = setup.seed if setup.client_seed is None else setup.client_seed
        self._ask: Callable[[Any], Any] = answer
        self.watch: Callable[[str, Callable[[Any], Any]], Callable[[Any], Any]] | None = None
        """Returns how the requests of a client function are answered, from its name and how they would be."""
        self._differs: set[tuple[str, str]] = set()
        """Functions that ask for what may differ between clients."""
        self.records_times = getattr(setup.programs.get("method"), "records_times", False)
        self.services = Services(Host(self.model, self.layout, self.example, task, setup.seed), setup.services)

    def run(self, call: Call) -> Iterator[Receipt | tuple[str, Any]]:
        """Run a call's function on its clients, chunk by chunk; those of a chunk work together.

        Until all is yielded the global random generators are the clients'; see `paceline.core.generators`.
        """
        functions = self.functions.get(call.program)
        if functions is None or call.function not in functions:
            raise UnknownNameError("client function", call.function, functions or self.functions)
        sink = call.channel.open()
        base, self.round = wire_size(call.message), call.round
        self.solver.use(call.kernels)
        if self.model.device.type != "cpu":  # the server's values lie on the CPU, clients' work on the device
            call = replace(
                call, message=self._here(call.message), each_message={c: self._here(m) for c, m in call.each_message.items()}
            )
        # a protocol's own steps draw nothing; where they run the method's functions they see to it themselves
        with nested(0, self.model.device) if call.program == "method" else contextlib.nullcontext():
            for chunk in call.chunks or [[client] for client in call.clients]:
                yield from self._chunk(call, chunk, sink, base)
        total = sink.partial()
        if total is not None:
            yield ("partial", total)

    def _here(self, tree: Tree) -> Tree:
        return map_leaves(lambda tensor: upload(tensor, self.model.device), tree)

    def _chunk(self, call: Call, chunk: Sequence[int], sink: Sink, base: int) -> Iterator[Receipt]:
        """Run one chunk: its clients' functions first, then what of their replies goes into the sum."""
        setup, name = (
            self.setup,
            call.function if call.program == "method" else f"{call.program}.{call.function}",
        )
        down = dict.fromkeys(chunk, base)
        down |= {c: base + wire_size(call.each_message[c]) for c in chunk if c in call.each_message} if call.each_message else {}
        here = list(chunk)
        if setup.drop is not None:
            gone = {c for c in chunk if setup.drop(call.round, c, name)}
            here = [c for c in chunk if c not in gone]
            for client in gone:
                yield Receipt(client, dropped="gone", bytes_down=down[client])
        if len(here) > 1:
            receipts = self._uniform(call, here, sink, down)
            if receipts is not None:
                yield from receipts
                return
        done = self._invoke_all(call, here)
        ready: list[tuple[Client, Any, int, Any]] = []
        for me, outcome, _ in done:
            if isinstance(outcome, Exception):
                yield self._failed(call, me, outcome, down[me.id])
        done = [d for d in done if not isinstance(d[1], Exception)]
        known: dict[Any, Any] = {}
        for (me, outcome, seconds), up in zip(done, self._sizes(sink, done), strict=True):
            if isinstance(up, Exception):
                yield self._failed(call, me, up, down[me.id])
                continue
            profile = setup.fleet.profile(me.id, call.round)
            key = (id(profile), me.flops, down[me.id], up, seconds if setup.measured else None)
            took = known.get(key)
            if took is None:
                took = known[key] = times(profile, Cost(*key[1:]))
                known[id(profile)] = profile  # keeps it alive, and so its id its own
            if call.deadline is not None and took.compute + took.network > call.deadline:
                yield self._receipt(call, me, None, took, down[me.id], up, "late")
            else:
                ready.append((me, outcome, up, took))
        with spent.on("summing"):
            values = sink.add_all([(me.id, reply, partial(_encoding, me)) for me, reply, _, _ in ready])
        for (me, _, up, took), value in zip(ready, values, strict=True):
            if isinstance(value, Exception):
                yield self._failed(call, me, value, down[me.id])
            else:
                yield self._receipt(call, me, value, took, down[me.id], up, None)

    def _uniform(self, call: Call, clients: Sequence[int], sink: Sink, down: Mapping[int, int]) -> list[Receipt] | None:
        """Run the function once for all clients of a chunk; None where that cannot be done, and nothing was."""
        setup, key = self.setup, (call.program, call.function)
        if not sink.stands_for_all or call.program != "method" or key in self._differs:
            return None
        if self.records_times or setup.measured or call.each_message or call.peers:
            return None
        index = None if isinstance(call.channel, Held) else self._together(clients)
        if index is None:
            return None
        lead = self.client(replace(call, clients=()), clients[0])
        lead.memory = Memory()
        with contextlib.suppress(PacelineError):  # whoever is at fault is found when they run one by one
            try:
                stand_in = Uniform(lead, index, lambda k, loop: self._order(call, clients[k], loop), self.solver.whole)
                reply = self.invoke(stand_in, call.function, call.message)
                stand_in.drew_nothing()
                up = sink.size(reply)
                devices = profiles(setup.fleet, clients, call.round)
                cost = Cost(lead.flops, down[clients[0]], up, None)
                known = {key: times(p, cost) for key, p in {id(p): p for p in devices}.items()}
                if call.deadline is not None and any(t.compute + t.network > call.deadline for t in known.values()):
                    return None
                with spent.on("summing"):
                    added = sink.add_uniform(clients, reply)
                if added:
                    if len(known) == 1:
                        ((compute, network),) = known.values()
                        return [Receipt(c, None, compute, network, cost.bytes_down, up) for c in clients]
                    return [Receipt(c, None, *known[id(p)], cost.bytes_down, up) for c, p in zip(clients, devices, strict=True)]
            except PacelineError:
                raise
            except Exception:  # no stand-in suits this function, or it has a fault, which comes up again with each client
                self._differs.add(key)
            else:
                self._differs.add(key)
        return None

    def _together(self, clients: Sequence[int]) -> Tensor | None:
        """Return the training rows of these clients in this round, shape [K, n]; None where they have unequally many."""
        if self.setup.task.steady:  # without slicing, where the partition can
            return self.setup.split.together(clients)
        rows = [self.samples(c).known for c in clients]
        return torch.stack(rows) if len({len(r) for r in rows}) == 1 else None

    def _order(self, call: Call, client: int, loop: int) -> torch.Generator:
        return self.client(call, client).stream("order", loop)

    def _sizes(self, sink: Sink, done: list[tuple[Client, Any, float]]) -> Sequence[Any]:
        """Return the bytes of each reply, or the error for one that cannot be sent."""
        replies = [reply for _, reply, _ in done]
        with contextlib.suppress(Exception):  # the one at fault is found below
            return sink.sizes(replies)
        sizes: list[Any] = []
        for reply in replies:
            try:
                sizes.append(sink.size(reply))
            except Exception as error:
                sizes.append(error)
        return sizes

    def _invoke_all(self, call: Call, clients: Sequence[int]) -> list[tuple[Client, Any, float]]:
        """Return each client with its reply, or the error that it raised, and the seconds it took."""
        if len(clients) < 2:
            return [self._invoke_one(call, self.client(call, client)) for client in clients]
        meeting = Meeting(self.solver, self.solver.single)
        self._ask = meeting.ask
        try:
            tasks = [partial(self._invoke_one, call, self.client(call, client)) for client in clients]
            return meeting.run(tasks)
        finally:
            self._ask = answer

    def _invoke_one(self, call: Call, me: Client) -> tuple[Client, Any, float]:
        message = delivered(call.message, call.each_message.get(me.id))
        started, mark = time.perf_counter(), me.memory.mark()
        try:
            if call.program == "method":
                reply = self.invoke(me, call.function, message)
            else:
                me.redraw()
                reply = getattr(self.setup.programs[call.program], call.function)(WorkerContext(self, call, me), message)
            if isinstance(call.channel, Held):
                hold(me, reply)
        except Exception as error:
            reply = error
            if call.program in (
                "method",
                "nested",
            ):  # a function that failed leaves no trace; a protocol's guards against replays stay
                me.memory.reset(mark)
        return me, reply, time.perf_counter() - started

    def _receipt(self, call: Call, me: Client, value: Any, took: Any, down: int, up: int, dropped: str | None) -> Receipt:
        if me.flops and me.job is not None and call.program in ("method", "nested") and self.records_times:
            me.memory["_times"] = [took.compute, took.network]
        return Receipt(me.id, value, took.compute, took.network, down, up, dropped)

    def _failed(self, call: Call, me: Client, error: Exception, down: int) -> Receipt:
        if not self.setup.strict or isinstance(error, Declined):
            return Receipt(me.id, dropped=reason_of(error), error=class_of(error), bytes_down=down)
        cause, job = reason_of(error), me.job
        if job is not None and job.batch is not None:
            x, y = ([tuple(t.shape) for _, t in columns(tree)] for tree in job.batch)
            targets = job.batch[1].tolist() if isinstance(job.batch[1], Tensor) else y
            cause += f"; batch: inputs {', '.join(map(str, x))}, targets {targets}"
        raise ClientError(me.id, call.function, call.round, cause, None if job is None else job.step) from error

    def client(self, call: Call, client: int, stream: str | None = None, peers: Any = None) -> Client:
        """Return the client as a client function sees it in this call.

        A protocol that wraps a method's function gives that function's own `stream`, and the records of its `peers`.
        """
        memory = self.memories.get(client)
        if memory is None:
            memory = self.memories[client] = Memory()
        return Client(
            client,
            call.round,
            partial(derive, self._client_seed, "client", client, call.round, stream or call.stream),
            self.model,
            self.setup.task,
            partial(self.samples, client, round=call.round),
            memory,
            call.peers.get(client) if peers is None else peers,
            services=self.services,
            strict=self.setup.strict,
            ask=self._ask,
            redraws=True,
            central=self.test,
            records_times=self.records_times,
            operation=call.operation,
            work_time=partial(work_time, self.setup.fleet, client, call.round, self.setup.measured),
        )

    def samples(self, client: int, part: int = 0, round: int | None = None) -> ClientData:
        """Return a client's training (0) or test (1) samples, as far as it has them in a round, in this one by default."""
        rows = self.setup.task.present(self.setup.split(client)[part], self.round if round is None else round)
        return ClientData(self.x, self.y, rows, self.model.device)

    def invoke(self, me: Client | Uniform, function: str, message: Any) -> Any:
        """Return what the method's `function` returns for `me`."""
        me.redraw()
        if isinstance(me, Client):
            me.memory.begin(me.operation)
            if self.watch is not None:
                me.ask = self.watch(function, me.ask)
        return getattr(self.setup.programs["method"], function)(me, message)

    def preview(self, function: str, message: Tree, client: int | None = None, held: Tree = None) -> Tree | None:
        """Return a reply of the method's `function` with the shape that clients will send; see `preview`."""
        return preview(self, function, message, client, held)

    # -- memory --------------------------------------------------------------------------------
    def commit(self) -> dict[int, dict[str, Any]]:
        """Make memory changes permanent; return the stores that changed, on the CPU."""
        changed = {c: m.commit() for c, m in self.memories.items() if m.changes}
        if self.model.device.type != "cpu":
            changed = on_host(changed)
        self.memories = {c: m for c, m in self.memories.items() if m.stored}
        self.sessions = {c: session for c, session in self.sessions.items() if session.end_round()}
        return changed

    def rollback(self) -> None:
        """Forget memory changes since the last commit, and half-finished protocol sessions."""
        for memory in self.memories.values():
            memory.rollback()
        self.sessions.clear()

    def withdraw(self, operation: int, clients: Sequence[int]) -> None:
        """Undo what clients staged in an operation, where their memories are here."""
        for client in clients:
            if (memory := self.memories.get(client)) is not None:
                memory.withdraw(operation)

    def restore(self, memories: Mapping[int, Mapping[str, Any]]) -> None:
        """Put stored memories back."""
        for client, stored in memories.items():
            if not 0 <= client < self.setup.num_clients:
                raise CheckpointError(
                    f"the checkpoint has a memory of client {client}, but the run has only {self.setup.num_clients} clients"
                )
            self.memories[client] = Memory(stored if self.model.device.type == "cpu" else self._here(dict(stored)))

    def evaluate(self, params: Params) -> dict[str, Any]:
        """Evaluate on the central test set; where it has parts, on each of them too."""
        self.model.load(self._here(params))
        self.model.load_buffers(self.model.initial_buffers)
        task, test = self.setup.task, self.test
        parts = task.parts()
        with nested(derive(self.setup.seed, "evaluate"), self.model.device):
            if not parts:
                return evaluate_on(self.model, task, test)
            each = [
                evaluate_on(self.model, task, ClientData(test.x, test.y, rows.to(test.index.device)), outputs=outputs)
                for rows, outputs in parts
            ]
        return added(each) | {"parts": each}


def _encoding(me: Client) -> int:
    return derive(me.seed, "encode")
