"""Workers as Ray actors, on this machine or on a cluster, with the same workers and scheduling as the local engine.

An actor builds its worker where it runs. A task that has a name is loaded there; a task given as an object is stored
once in the object store. A call's message is also stored there once, and each actor's partial sum stays on its side
until the sums have been added pairwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from paceline.core.engine import Call, Receipt
from paceline.core.errors import ConfigError, EngineError, WorkerDiedError
from paceline.core.profiling import spent
from paceline.core.tree import register_again
from paceline.core.wording import setting
from paceline.engines.pool import Pool
from paceline.engines.ray_actor import Actor
from paceline.engines.ray_cluster import connect, pack, unpack
from paceline.engines.setup import Setup
from paceline.engines.transfer import lighten

__all__ = ["RayEngine"]


class RayEngine(Pool):
    """Runs client functions on Ray actors.

    Args:
        setup: what workers are built from; if it has `samples`, these are loaded by the actors.
        workers: number of actors.
        address: running cluster, as ``host:port`` or ``auto``; None starts one on this machine.
        cpus, gpus: resources requested by each actor.
        patience: seconds to wait for the cluster, and for its actors.

    Raises:
        MissingExtraError: Ray is not installed.
        EngineError: the cluster cannot be reached or lacks resources.
        ConfigError: a CUDA device without `gpus`.
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
        on_gpu = setup.device.startswith("cuda")
        if on_gpu and not gpus:  # Ray hides the GPUs from actors that request none
            raise ConfigError(
                f"device {setup.device!r} with Ray: set the GPUs (or the fraction of one) of each actor with {setting('ray_gpus')}"
            )
        # the driver machine need not have the actors' devices
        with_device = setup.device == "cpu" or address is None or torch.cuda.is_available()
        super().__init__(setup if with_device else replace(setup, device="cpu"), workers)
        self._ray, self._ours = connect(address, workers * cpus, patience)
        self._options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0}
        self._patience = patience
        self._actors: list[Any] = []
        self._starting: list[tuple[Any, Any]] = []
        try:
            self._check(workers)
            # samples loaded by the actors are not sent; everything else is put into the object store once
            theirs = replace(setup, device="cuda") if on_gpu else setup  # an actor sees only the GPU that Ray assigned to it
            self._source = self._ray.put(pack((lighten(theirs), register_again())))
            self._actors = [self._start() for _ in range(workers)]
            self._await()
        except BaseException:
            self.close()
            raise

    # -- calls ---------------------------------------------------------------------------------
    def run(self, call: Call) -> Iterator[Receipt | tuple[str, Any]]:
        """Run a call; yield receipts as actors finish, and one sum.

        Raises:
            WorkerDiedError: an actor died; it was replaced, and the round can be repeated.
            EngineError: an actor failed otherwise.
        """
        with spent.on("bookkeeping"):
            message = self._ray.put(pack(call.message))
            waiting: dict[Any, tuple[int, Any]] = {}
            sums: list[tuple[int, Any]] = []
            for number, part, memories in self._parts(replace(call, message=None)):
                done, partial = self._actors[number].run.options(num_returns=2).remote(message, pack((part, memories)))
                waiting[done] = (number, partial)
        while waiting:
            with spent.on("waiting"):
                (done, *_), _ = self._ray.wait(list(waiting))
            number, partial = waiting.pop(done)
            answer = self._get(done, list(waiting))
            if isinstance(answer, Exception):
                self._settle(list(waiting))
                raise answer
            items, has_sum, notes, seconds = answer
            self._notes.update(notes)
            self.spent.add(seconds)
            sums += [(number, partial)] if has_sum else []
            yield from items
        while len(sums) > 1:  # tree reduction: each pair is added on the first one's actor
            pairs = [(sums[k], sums[k + 1]) for k in range(0, len(sums) - 1, 2)]
            merged = [(a[0], self._actors[a[0]].merge.remote(a[1], b[1])) for a, b in pairs]
            sums = merged + sums[2 * len(pairs) :]
        if sums:
            yield ("partial", self._get(sums[0][1]))

    def _ask_all(self, what: str, *values: Any) -> Iterator[Any]:
        for ref in [actor.ask.remote(what, *values) for actor in self._actors]:
            yield self._get(ref)

    def _get(self, ref: Any, others: list[Any] | None = None) -> Any:
        """Return an actor's result; if the actor died, wait for `others` and replace it."""
        lost = self._ray.exceptions
        try:
            return unpack(self._ray.get(ref))
        except lost.RayError as error:
            if isinstance(error, lost.RayTaskError) and not isinstance(error.cause, lost.RayError):
                raise EngineError(f"a Ray actor failed: {error}") from error
            self._settle(others)
            self._replace()
            raise WorkerDiedError(f"a Ray actor died and was replaced; the round can be repeated ({_first(error)})") from error

    def _settle(self, refs: list[Any] | None) -> None:
        """Wait until pending calls end, so that their actors are free for the next call."""
        if refs:
            self._ray.wait(refs, num_returns=len(refs))

    # -- actors --------------------------------------------------------------------------------
    def _start(self) -> Any:
        actor = self._ray.remote(**self._options)(Actor).remote()
        self._starting.append((actor.pid.remote(), actor.load.remote(self._source)))
        return actor

    def _replace(self) -> None:
        """Start new actors in place of dead ones."""
        gone = self._ray.exceptions
        for tries_left in (2, 1, 0):  # Ray may select a machine that has just died
            asked = [actor.pid.remote() for actor in self._actors]
            for number, ref in enumerate(asked):
                try:
                    self._ray.get(ref, timeout=self._patience)
                except gone.RayError:
                    self._ray.kill(self._actors[number])  # it may be alive but unresponsive
                    self._actors[number] = self._start()
            try:
                self._await()
                break
            except EngineError as error:
                if not tries_left or not isinstance(error.__cause__, gone.RayActorError):
                    raise
        self._new_round()

    def _check(self, workers: int) -> None:
        """Raise immediately if the cluster can never provide the requested resources."""
        there = self._ray.cluster_resources()
        for name, wanted in (("CPU", self._options["num_cpus"]), ("GPU", self._options["num_gpus"])):
            if workers * wanted > there.get(name, 0.0):
                raise EngineError(
                    f"{workers} Ray actors of {wanted:g} {name} each exceed the cluster, which has {there.get(name, 0.0):g} {name}; "
                    f"lower {setting('workers')} or {setting(f'ray_{name.lower()}s')}"
                )

    def _await(self) -> None:
        """Wait until new actors have started and loaded their samples, with a timeout."""
        starting, self._starting = self._starting, []
        there = [pid for pid, _ in starting]
        ready, late = self._ray.wait(there, num_returns=len(there), timeout=self._patience) if there else ([], [])
        try:
            self._ray.get(ready)
            loaded = [] if late else [unpack(packed) for packed in self._ray.get([load for _, load in starting])]
        except self._ray.exceptions.RayError as error:
            raise EngineError(f"a Ray actor could not be started: {error}") from error
        if late:
            free, wanted = self._ray.available_resources(), self._options
            raise EngineError(
                f"{len(late)} of {len(self._actors)} Ray actors did not start within {self._patience:g} s; each requests "
                f"{wanted['num_cpus']:g} CPU and {wanted['num_gpus']:g} GPU, and the cluster has {free.get('CPU', 0.0):g} CPU and "
                f"{free.get('GPU', 0.0):g} GPU free: stop other jobs on it, or lower {setting('workers')}"
            )
        for fault in loaded:
            if fault is not None:
                raise fault

    @property
    def pids(self) -> list[int]:
        """Process ids of the actors, each on its own machine."""
        return list(self._ray.get([actor.pid.remote() for actor in self._actors]))

    def close(self) -> None:
        """Kill the actors, and shut Ray down if this engine connected to it."""
        if self._ray.is_initialized():
            for actor in self._actors:
                self._ray.kill(actor)
            if self._ours:
                self._ray.shutdown()
        self._actors = []


def _first(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
