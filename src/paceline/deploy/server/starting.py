"""What of a run's initial weights would not reach the clients of a federation: they receive the trained part, no file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paceline.core.random import derive
from paceline.core.wording import setting
from paceline.store.start import Start
from paceline.tasks import Task

if TYPE_CHECKING:
    from paceline.runner import Run

__all__ = ["unsent"]


def unsent(run: Run, task: Task, start: Start) -> list[str]:
    """Return why clients would start from other weights than the server, one sentence each; empty if they do not.

    Args:
        run: the prepared run.
        task: its task, with random weights.
        start: the weights.
    """
    named = setting("start_from", start.where)
    if not run.method.sends_model:
        return [
            f"method {run.config.method!r} keeps a part of the model at the clients, which do not receive {named}; simulate it, or "
            "use a method that sends the whole model"
        ]
    random = task.build(derive(run.config.seed, "init")).state_dict()
    sent = run.fed.engine.init_params().layout.by_name
    fixed = [
        name
        for name, value in start.tensors.items()
        if name not in sent and name in random and value.is_floating_point() and not value.equal(random[name])
    ]
    if not fixed:
        return []
    return [
        f"{named} has other values than the clients' models in {', '.join(fixed[:6])}{', ...' if len(fixed) > 6 else ''}, which are not "
        "trained and so never sent; put them into the task's own model"
    ]
