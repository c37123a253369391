"""Engine wrapper with Byzantine clients, transparent to methods, aggregations and other engines.

Honest clients run as usual. The Byzantine ones are called separately; their replies are replaced by the adversary's,
and continue through their original channel.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from paceline.adversaries.behaviours import Adversary
from paceline.core.deferred import Held
from paceline.core.engine import Call, Channel, Engine, Receipt, Sink
from paceline.core.failures import class_of, reason_of
from paceline.core.params import Params
from paceline.core.random import derive
from paceline.core.services import Services
from paceline.core.task import Task
from paceline.core.tree import Tree, flatten, unflatten
from paceline.core.update import Update

__all__ = ["Hostile", "poisoned"]


class Hostile(Engine):
    """Wraps an engine.

    Args:
        engine: runs the client functions.
        adversary: attack on the replies of Byzantine clients.
        byzantine: ids of the Byzantine clients.
        seed: seed of the run.
    """

    def __init__(self, engine: Engine, adversary: Adversary, byzantine: Collection[int], seed: int) -> None:
        self.inner, self.adversary, self.byzantine, self.seed = engine, adversary, byzantine, seed
        self.num_clients = engine.num_clients

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    @property
    def services(self) -> Services:
        """Services of the engine."""
        return self.inner.services

    @property
    def notes(self) -> Mapping[str, str]:
        """What could not be stacked, and why."""
        return self.inner.notes

    @property
    def seconds(self) -> Mapping[str, float]:
        """What worker processes spent their time on."""
        return self.inner.seconds

    def run(self, call: Call) -> Iterator[Receipt | tuple[str, Any]]:
        """Run a call; replies of Byzantine clients are crafted together."""
        bad = [c for c in call.clients if c in self.byzantine]
        of_method = call.program == "method" or (call.program, call.function) == ("nested", "run")
        if not bad or not of_method or isinstance(call.channel, Held):
            yield from self.inner.run(call)
            return
        good = [c for c in call.clients if c not in self.byzantine]
        if good:
            yield from self.inner.run(_part(call, good))
        receipts = [r for r in self.inner.run(replace(_part(call, bad), channel=_Tap(call.channel))) if isinstance(r, Receipt)]
        receipts.sort(key=lambda r: r.client)
        sent = [r for r in receipts if r.dropped is None]
        yield from (r for r in receipts if r.dropped is not None)
        if not sent:
            return
        stream = partial(self._stream, call)
        crafted = _craft(self.adversary, [r.value for r in sent], len(call.clients), lambda i: stream(sent[i].client, "attack"))
        sink = call.channel.open()
        values = sink.add_all(
            [(r.client, v, partial(self._seed, call, r.client, "encode")) for r, v in zip(sent, crafted, strict=True)]
        )
        for receipt, value in zip(sent, values, strict=True):
            if isinstance(value, Exception):
                yield replace(receipt, value=None, dropped=reason_of(value), error=class_of(value))
            else:
                yield replace(receipt, value=value)
        total = sink.partial()
        if total is not None:
            yield ("partial", total)

    def _seed(self, call: Call, client: int, *path: str) -> int:
        return derive(derive(self.seed, "client", client, call.round, call.stream), *path)

    def _stream(self, call: Call, client: int, *path: str) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed(call, client, *path))

    # -- the engine's other duties -------------------------------------------------------------
    def preview(self, function: str, message: Tree) -> Tree | None:
        """Return a reply with the shape that clients will send."""
        return self.inner.preview(function, message)

    def commit(self) -> dict[int, dict[str, Any]]:
        """Make the clients' memory changes permanent; return the changed memories."""
        return self.inner.commit()

    def rollback(self) -> None:
        """Discard memory changes since the last commit."""
        self.inner.rollback()

    def withdraw(self, operation: int, clients: Sequence[int]) -> None:
        """Undo what clients staged in an operation."""
        self.inner.withdraw(operation, clients)

    def restore(self, memories: Mapping[int, Mapping[str, Any]]) -> None:
        """Restore stored memories."""
        self.inner.restore(memories)

    def init_params(self) -> Params:
        """Return the initial model."""
        return self.inner.init_params()

    def evaluate(self, params: Params) -> dict[str, Any]:
        """Evaluate on the task's central test set."""
        return self.inner.evaluate(params)

    def close(self) -> None:
        """Stop the workers."""
        self.inner.close()


@dataclass(frozen=True)
class _Tap:
    """Channel of Byzantine clients: replies cost the same as in `channel`, and are returned individually."""

    channel: Channel

    def open(self) -> Sink:
        return _TapSink(self.channel.open())


class _TapSink(Sink):
    def __init__(self, inner: Sink) -> None:
        self._inner = inner

    def size(self, reply: Tree) -> int:
        return self._inner.size(reply)

    def add(self, client: int, reply: Tree, seed: Callable[[], int]) -> Tree:
        return reply


def _part(call: Call, clients: Sequence[int]) -> Call:
    mine = set(clients)
    return replace(
        call,
        clients=tuple(clients),
        each_message={c: m for c, m in call.each_message.items() if c in mine},
        peers={c: p for c, p in call.peers.items() if c in mine},
    )


def _craft(adversary: Adversary, replies: Sequence[Tree], cohort: int, rng: Callable[[int], torch.Generator]) -> list[Tree]:
    """Return the replies with all float tensors and vote vectors replaced; replies of identical layout are crafted together."""
    opened = [flatten(dict(r.fields) if isinstance(r, Update) else r) for r in replies]
    makes: dict[Any, list[int]] = {}
    for place, (_, leaves) in enumerate(opened):
        makes.setdefault(tuple((tuple(t.shape), t.is_floating_point()) for t in leaves), []).append(place)
    crafted = list(replies)
    for shapes, places in makes.items():
        if not shapes:  # contains only numbers
            continue
        _vote(adversary, [opened[p][1] for p in places])
        sent: Any = [torch.zeros(0)] * len(places)
        if any(floating for _, floating in shapes):
            rows = [torch.cat([t.reshape(-1) for t in opened[p][1] if t.is_floating_point()]) for p in places]
            sent = adversary.craft(torch.stack(rows), cohort, lambda i, places=places: rng(places[i]))  # type: ignore[misc]
        for place, row in zip(places, sent, strict=True):
            structure, leaves = opened[place]
            whole = unflatten(structure, _replaced(leaves, row))
            reply = replies[place]
            crafted[place] = Update(weight=reply.weight, **whole) if isinstance(reply, Update) else whole
    return crafted


def _vote(adversary: Adversary, replies: Sequence[list[Tensor]]) -> None:
    """Replace the integer vectors of replies of identical layout."""
    for i, leaf in enumerate(replies[0]):
        if leaf.dim() == 1 and not leaf.is_floating_point():
            for leaves, row in zip(replies, adversary.craft_votes(torch.stack([r[i] for r in replies])), strict=True):
                leaves[i] = row.clone()


def _replaced(leaves: Sequence[Tensor], row: Tensor) -> list[Tensor]:
    out, start = [], 0
    for leaf in leaves:
        if leaf.is_floating_point():
            out.append(row[start : start + leaf.numel()].reshape(leaf.shape).clone())
            start += leaf.numel()
        else:
            out.append(leaf)
    return out


def poisoned(task: Task, split: Callable[[int], tuple[Tensor, Tensor]], adversary: Adversary, byzantine: Collection[int]) -> Task:
    """Return the task with the Byzantine clients' training labels changed by the adversary."""
    y = task.train.y.clone()
    for client in byzantine:
        rows = split(client)[0]
        y[rows] = adversary.labels(y[rows], task.num_classes)
    return replace(task, train=replace(task.train, y=y))
