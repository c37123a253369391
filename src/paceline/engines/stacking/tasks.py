"""Client functions as cooperating tasks: each runs until it needs the local loop, and goes on with the result.

Client functions stay plain imperative code. A greenlet is a function that can be left in the middle and
entered again; those of a chunk of clients are left at ``client.sgd``, so that all of them can be served as one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from greenlet import getcurrent, greenlet

from paceline.core.training import LoopRequest

__all__ = ["Meeting", "NotAtOnce"]


class NotAtOnce:
    """The answer to a request that failed: the error to raise in the client that asked.

    Args:
        error: what went wrong.
    """

    def __init__(self, error: Exception) -> None:
        self.error = error


class Meeting:
    """Runs the functions of a chunk of clients, and serves their requests together.

    Args:
        serve: answers requests, one answer for each, `NotAtOnce` for one that failed.
    """

    def __init__(self, serve: Callable[[list[LoopRequest]], list[Any]]) -> None:
        self.serve = serve
        self._hub = getcurrent()

    def ask(self, request: LoopRequest) -> Any:
        """Hand a request in, and return its answer once everybody has come this far (called by a client's task)."""
        if request.alone or getcurrent() is self._hub:
            return request.run()
        grad = torch.is_grad_enabled()  # of this task; the others must not inherit it
        answer = self._hub.switch(request)
        if torch.is_grad_enabled() != grad:
            torch.set_grad_enabled(grad)
        if isinstance(answer, NotAtOnce):
            raise answer.error
        return answer

    def run(self, tasks: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run all tasks to their ends; return what they returned, in order.

        A task must not raise: an exception would leave the others where they are.
        """
        self._hub = getcurrent()
        results: list[Any] = [None] * len(tasks)
        lets = [greenlet(task) for task in tasks]
        waiting: list[tuple[int, Any]] = []
        grad = torch.is_grad_enabled()

        def enter(place: int, *value: Any) -> None:
            out = lets[place].switch(*value)
            if torch.is_grad_enabled() != grad:
                torch.set_grad_enabled(grad)
            if lets[place].dead:
                results[place] = out
            else:
                waiting.append((place, out))

        for place in range(len(tasks)):
            enter(place)
        while waiting:
            asked, waiting[:] = list(waiting), []
            for (place, _), answer in zip(asked, self.serve([request for _, request in asked]), strict=True):
                enter(place, answer)
        return results
