"""Client functions as cooperative tasks: each runs until it requests the local loop, and resumes with the result.

Client functions remain plain imperative code. A greenlet is a function that can be suspended and resumed; those of a
chunk of clients are suspended at ``client.sgd``, so that all their requests are served together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from greenlet import getcurrent, greenlet

from paceline.core.training import LoopRequest, answer

__all__ = ["Meeting", "RequestFailed"]


class RequestFailed:
    """The answer to a failed request: the error to raise in the client that made it.

    Args:
        error: the error.
    """

    def __init__(self, error: Exception) -> None:
        self.error = error


class Meeting:
    """Runs the functions of a chunk of clients and serves their requests together.

    Args:
        serve: maps requests to answers, in order; `RequestFailed` for a request that failed.
        single: answers a request that must run at once and on its own.
    """

    def __init__(self, serve: Callable[[list[LoopRequest]], list[Any]], single: Callable[[LoopRequest], Any] = answer) -> None:
        self.serve, self.single = serve, single
        self._hub = getcurrent()

    def ask(self, request: LoopRequest) -> Any:
        """Submit a request from a client's task; return its answer once all tasks of the chunk are suspended or done."""
        if getcurrent() is self._hub:
            return request.run()
        if request.alone:
            return self.single(request)
        grad = torch.is_grad_enabled()  # this task's setting; other tasks must not inherit it
        answer = self._hub.switch(request)
        if torch.is_grad_enabled() != grad:
            torch.set_grad_enabled(grad)
        if isinstance(answer, RequestFailed):
            raise answer.error
        return answer

    def run(self, tasks: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run all tasks to completion; return their results, in order.

        A task must not raise: an exception would leave the others suspended.
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
            for (place, _), result in zip(asked, self.serve([request for _, request in asked]), strict=True):
                enter(place, result)
        return results
