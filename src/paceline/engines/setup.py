"""What a worker is built from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from paceline.core.samples import Split
from paceline.core.services import ServiceMakers

__all__ = ["Setup"]


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
        client_seed: of the clients' random streams, where it is not the run's.
        flops: forward cost of one sample, in FLOPs.
        device: torch device of model and data.
        drop: (round, client, function) -> whether the client vanishes before that function's reply.
        measured: use measured seconds on this machine in place of FLOPs.
        strict: check every step, re-raise errors as they come (the debug engine).
        threads: torch threads of each worker process.
        precision: of matrix products and convolutions in training: float32, tf32 or bf16.
        chunk: most clients that work as one.
        one_step: run clients that take one step as one batch, where they work in chunks.
        samples: loads task and split again in another process, where that is less than to send them.
        services: how that is made which client functions may use as well, by class (such as `Submodels`).
        profiled: measure the time of a GPU by section.
    """

    programs: dict[str, Any]
    task: Any
    split: Split
    num_clients: int
    fleet: Any
    seed: int
    client_seed: int | None = None
    flops: float = 0.0
    device: str = "cpu"
    drop: Callable[[int, int, str], bool] | None = None
    measured: bool = False
    strict: bool = False
    threads: int = 1
    precision: str = "float32"
    chunk: int = 1
    one_step: bool = True
    samples: Callable[[], tuple[Any, Any]] | None = None
    services: ServiceMakers = field(default_factory=dict)
    profiled: bool = False

    def cost(self, client: int) -> int:
        """Return the expected work of a client: its samples."""
        return self.split.num_train(client) + 1

    def costs(self, clients: Sequence[int]) -> list[int]:
        """Return the expected work of several clients."""
        return [count + 1 for count in self.split.nums_train(clients)]
