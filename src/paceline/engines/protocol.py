"""A protocol's call to one client, on the worker that runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from paceline.core.client import Client, ClientData
from paceline.core.engine import Call
from paceline.core.generators import nested
from paceline.core.protocol import ProtocolContext, ProtocolSession
from paceline.core.tree import Tree
from paceline.devices import Cost, times
from paceline.engines.preview import stand_ins

if TYPE_CHECKING:
    from paceline.engines.worker import Worker

__all__ = ["WorkerContext"]


class WorkerContext(ProtocolContext):
    """See `ProtocolContext`.

    Args:
        worker: runs the client.
        call: of the protocol.
        client: as this call sees it.
    """

    def __init__(self, worker: Worker, call: Call, client: Client) -> None:
        session = worker.sessions.setdefault(client.id, ProtocolSession())
        super().__init__(client, session, worker.functions["method"], worker.setup.programs["method"].names_each_client())
        self._worker, self._call = worker, call

    def inner(self, stream: str, peers: Mapping[int, Tree]) -> Client:
        """Return the same client as the method's function sees it."""
        return self._worker.client(self._call, self.client.id, stream, peers)

    def ahead(self, stream: str) -> Client:
        """Return the same client as of the next round, with a copy of its memory as it is now, and random streams of this name."""
        client = self._worker.client(replace(self._call, round=self._call.round + 1), self.client.id, stream, {})
        client.memory = client.memory.copy()
        return client

    def invoke(self, client: Client, function: str, message: Tree) -> Any:
        """Return what the method's function returns."""
        return self._worker.invoke(client, function, message)

    def preview(self, function: str, message: Tree) -> Tree | None:
        """Return a reply with the shape that the method's function gives it, whatever the client's data."""
        held = self.client.memory.get("_held") if self.functions[function].collects else None
        return self._worker.preview(function, message, self.client.id, held)

    def cover(self, stream: str, peers: Mapping[int, Tree], function: str, message: Tree) -> Client | None:
        """Run a function that failed on samples drawn at random instead, and keep only what the method is paced by."""
        memory, method = self.client.memory, self._worker.setup.programs["method"]
        if not method.records_times:
            return None
        inner, noted, count = self.inner(stream, peers), memory.mark(), self.client.num_samples
        inner.train = inner.test = ClientData(*stand_ins(self._worker, count), torch.arange(count), inner.device)
        inner.nameless = not self.names_clients
        try:
            with nested(0, inner.device):
                self.invoke(inner, function, message)
            kept = {key: memory[key] for key in method.paced_by if key in memory}
        except Exception:  # as for every client, so nothing is told
            memory.reset(noted)
            return None
        memory.reset(noted)
        memory.update(kept)
        return inner

    def note_times(self, inner: Client, down: int, up: int) -> None:
        """Store how long the method's function took."""
        if inner.records_times and inner.job is not None:
            took = times(self._worker.setup.fleet.profile(self.client.id, inner.round), Cost(inner.flops, down, up, None))
            inner.memory["_times"] = [took.compute, took.network]
