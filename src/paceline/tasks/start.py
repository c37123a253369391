"""Tasks whose model starts from given weights instead of random ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from torch import Tensor, nn

from paceline.core.errors import LayoutError
from paceline.core.task import Task
from paceline.store.weights import check_names

__all__ = ["fits", "started", "without_start"]

_PROBE = 0


def fits(task: Task, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether weights match a task's model in names and shapes."""
    try:
        check_names(task.build(_PROBE), tensors, "", task.name)
    except LayoutError:
        return False
    return True


def started(task: Task, tensors: Mapping[str, Tensor], where: str) -> Task:
    """Return the task with a model that starts from these weights, on every worker and whatever the seed.

    Args:
        task: the task.
        tensors: weights by name; counters (integer buffers) may be missing.
        where: origin of the weights, for messages.

    Raises:
        LayoutError: names or shapes differ from those of the model; lists them.

    Example:
        >>> from paceline.tasks import blobs
        >>> weights = blobs().build(5).state_dict()
        >>> again = started(blobs(), weights, "weights.pt").build(0)
        >>> all(value.equal(weights[name]) for name, value in again.state_dict().items())
        True
    """
    check_names(task.build(_PROBE), tensors, where, task.name)
    return replace(task, model=partial(_loaded, task.model, dict(tensors)))


def _loaded(make: Callable[[], nn.Module], tensors: Mapping[str, Tensor]) -> nn.Module:
    module = make()
    module.load_state_dict(dict(tensors), strict=False)
    return module


def without_start(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return what makes a task's model with random weights."""
    while isinstance(make, partial) and make.func is _loaded:
        make = make.args[0]
    return make
