"""What a worker has beside its resident model, by class: each part is made when it is first asked for.

A part, such as the cutter of sub-models, is made from a `Host`: the model and the task, and nothing of any client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from paceline.core.errors import ConfigError
from paceline.core.layout import Layout
from paceline.core.params import Resident

__all__ = ["Host", "ServiceMakers", "Services"]

S = TypeVar("S")


@dataclass(frozen=True)
class Host:
    """What services are made from: what all clients of a worker share.

    Args:
        model: the resident module.
        layout: of the run's parameters.
        example: one sample's inputs, a batch of 1.
        task: the task.
        seed: of the run.
    """

    model: Resident
    layout: Layout
    example: Any
    task: Any
    seed: int


ServiceMakers = Mapping[type[Any], Callable[[Host], Any]]
"""How each service is made, by its class."""


class Services:
    """The services of a worker: ``services[Submodels]`` is a `Submodels`.

    Args:
        host: what they are made from.
        makers: how.
    """

    def __init__(self, host: Host | None = None, makers: ServiceMakers | None = None) -> None:
        self._host, self._makers = host, dict(makers or {})
        self._made: dict[type[Any], Any] = {}

    def __getitem__(self, kind: type[S]) -> S:
        """Return the service of a class. Raises `ConfigError` where there is none."""
        if kind not in self._made:
            if self._host is None or kind not in self._makers:
                known = ", ".join(sorted(k.__name__ for k in self._makers)) or "none"
                raise ConfigError(f"service {kind.__name__} is not registered (registered: {known}); add it to Setup.services")
            self._made[kind] = self._makers[kind](self._host)
        service = self._made[kind]
        assert isinstance(service, kind)
        return service
