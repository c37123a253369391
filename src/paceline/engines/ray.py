"""Workers as Ray actors, on this machine or on a cluster: the same worker, dealt to in the same way.

An actor builds its worker where it runs. A task that has a name is loaded there; one that was given as an object
goes into the object store once. A call's message is put there once too, and each actor's partial
sum stays on its side until the sums have been added up pair by pair.
"""

from __future__ import annotations

import copy
import functools
import logging
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from paceline.call import Call, Receipt
from paceline.engines.pool import Pool
from paceline.engines.worker import Setup, Worker
from paceline.errors import EngineError, MissingExtraError, WorkerDiedError
from paceline.spent import spent

__all__ = ["RayEngine"]


class RayEngine(Pool):
    """Runs client functions on Ray actors.

    Args:
        setup: what a worker is built from; where it has `samples`, these are loaded by the actors.
        workers: number of actors.
        address: of a running cluster, as ``host:port`` or ``auto``; None starts one on this machine.
        cpus, gpus: what each actor asks for.
        patience: seconds to wait for the cluster and for its actors.

    Raises `MissingExtraError` without Ray, `EngineError` where the cluster cannot be reached or lacks resources.
    """

    def __init__(
        self,
        setup: Setup,
        workers: int = 1,
        address: str | None = None,
        cpus: float = 1.0,
        gpus: float = 0.0,
        patience: float = 60.0,
    ) -> None:
        super().__init__(setup, workers)
        self._ray = _connect(address, max(1, round(workers * cpus)), patience)
        self._options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0}
        self._patience = patience
        self._check(workers)
        # what is loaded where the actor runs need not travel; anything else is sent to the object store once
        light = setup if setup.samples is None else replace(setup, task=None, split=None)  # type: ignore[arg-type]
        self._source = functools.partial(_given, self._ray.put(light))
        self._actors = [self._start() for _ in range(workers)]
        self._await(self._actors)

    def run(self, call: Call) -> Iterator[Receipt | tuple[str, Any]]:
        """Run a call; yields receipts as actors end, and one sum."""
        message, waiting, sums = self._ray.put(call.message), {}, []
        for number, part, memories in self._parts(replace(call, message=None)):
            receipts, partial = self._actors[number].run.options(num_returns=2).remote(message, part, memories)
            waiting[receipts] = (number, partial)
        while waiting:
            with spent.on("waiting"):
                (done, *_), _ = self._ray.wait(list(waiting))
            number, partial = waiting.pop(done)
            answer = self._get(done, list(waiting))
            if isinstance(answer, Exception):
                self._ray.wait(list(waiting), num_returns=len(waiting)) if waiting else None
                raise answer
            items, has_sum, notes, seconds = answer
            self.notes.update(notes)
            self.spent.add(seconds)
            sums += [(number, partial)] if has_sum else []
            yield from items
        while len(sums) > 1:  # a tree: each pair is added on the first one's actor
            pairs = [(sums[k], sums[k + 1]) for k in range(0, len(sums) - 1, 2)]
            merged = [(a[0], self._actors[a[0]].merge.remote(a[1], b[1])) for a, b in pairs]
            sums = merged + sums[2 * len(pairs) :]
        if sums:
            yield ("partial", copy.deepcopy(self._get(sums[0][1], [])))

    def _get(self, ref: Any, others: list[Any]) -> Any:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayActorError as error:
            if others:
                self._ray.wait(others, num_returns=len(others))
            self._replace()
            raise WorkerDiedError(f"a Ray actor died; it was replaced, the round can be run again ({error})") from error

    def _replace(self) -> None:
        """Start new actors in the places of those that are gone."""
        for number, actor in enumerate(self._actors):
            try:
                self._ray.get(actor.pid.remote(), timeout=self._patience)
            except (self._ray.exceptions.RayActorError, self._ray.exceptions.GetTimeoutError):
                self._actors[number] = self._start()
        self._await(self._actors)
        self._new_round()

    def _ask_all(self, what: str) -> Iterator[Any]:
        for ref in [actor.ask.remote(what) for actor in self._actors]:
            yield self._get(ref, [])

    def _start(self) -> Any:
        actor = self._ray.remote(**self._options)(_Actor)
        return actor.remote(self._source, self.setup.threads)

    def _check(self, workers: int) -> None:
        """Refuse at once what the cluster can never give."""
        there = self._ray.cluster_resources()
        for name, wanted in (("CPU", self._options["num_cpus"]), ("GPU", self._options["num_gpus"])):
            if workers * wanted > there.get(name, 0.0):
                raise EngineError(
                    f"{workers} Ray actors of {wanted:g} {name} each cannot be had: the cluster has {there.get(name, 0.0):g} {name}; "
                    f"use fewer --workers, or a smaller --ray-{name.lower()}s"
                )

    def _await(self, actors: list[Any]) -> None:
        """Wait until actors are up."""
        refs = [actor.pid.remote() for actor in actors]
        ready, late = self._ray.wait(refs, num_returns=len(refs), timeout=self._patience)
        if late:
            raise EngineError(f"{len(late)} of {len(refs)} Ray actors did not start within {self._patience:g} s; the cluster may be full")
        for ref in ready:
            self._get_started(ref)

    def _get_started(self, ref: Any) -> None:
        try:
            self._ray.get(ref)
        except self._ray.exceptions.RayError as error:
            raise EngineError(f"a Ray actor could not be started: {error}") from error

    @property
    def pids(self) -> list[int]:
        """Process numbers of the actors, each on its own machine."""
        return list(self._ray.get([actor.pid.remote() for actor in self._actors]))

    def close(self) -> None:
        """End the actors; Ray itself stays, for the next run of this process."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []


class _Actor:
    """A worker inside an actor."""

    def __init__(self, source: Callable[[], Setup], threads: int) -> None:
        torch.set_num_threads(threads)
        self.worker = Worker(source())

    def run(self, message: Any, call: Call, memories: dict[int, dict[str, Any]]) -> Any:
        """Return (receipts, whether there is a sum, notes, seconds), and the partial sum."""
        spent.take()
        try:
            with spent.on("bookkeeping"):
                self.worker.restore(memories)
                items = list(self.worker.run(replace(call, message=message)))
        except Exception as error:
            return error, None
        sums = [item[1] for item in items if isinstance(item, tuple)]
        receipts = [item for item in items if isinstance(item, Receipt)]
        return (receipts, bool(sums), self.worker.solver.notes, spent.take()), sums[0] if sums else None

    def merge(self, mine: Any, other: Any) -> Any:
        """Add another partial sum to this one."""
        total = copy.deepcopy(mine)  # what comes from the object store cannot be changed
        total.merge(other)
        return total

    def ask(self, what: str) -> Any:
        """Run a method of the worker."""
        value = getattr(self.worker, what)()
        if what == "commit":
            self.worker.memories.clear()
        return value

    def pid(self) -> int:
        """Return this process's number."""
        return os.getpid()


def _given(ref: Any) -> Setup:
    import ray

    setup = ray.get(ref)
    assert isinstance(setup, Setup)
    if setup.samples is None:
        return setup
    task, split = setup.samples()
    return replace(setup, task=task, split=split)


def _connect(address: str | None, cpus: int, patience: float) -> Any:
    """Return the module `ray`, connected."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("Ray", "ray") from error
    if ray.is_initialized():
        return ray
    if address is not None and ":" in address and "://" not in address:
        _reach(address, patience)
    try:
        quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
        here = {"num_cpus": max(cpus, os.cpu_count() or 1), **quiet} if address is None else {"address": address, **quiet}
        if address is not None:
            del here["include_dashboard"]
        ray.init(**here)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise EngineError(f"the Ray cluster {address or 'on this machine'} cannot be used: {str(error).splitlines()[0]}") from error
    return ray


def _reach(address: str, patience: float) -> None:
    """Find out at once whether somebody listens; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise EngineError(f"the Ray address {address!r} is no host:port")
    try:
        socket.create_connection((host, int(port)), timeout=min(patience, 10.0)).close()
    except OSError as error:
        raise EngineError(f"no Ray cluster answers at {address}: {error}; start one with: ray start --head") from error
