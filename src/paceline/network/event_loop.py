"""An asyncio event loop in a background thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["LoopThread"]

T = TypeVar("T")


class LoopThread:
    """Runs an event loop until it is stopped; other threads submit functions and coroutines.

    Example:
        >>> loop = LoopThread()
        >>> loop.call(lambda x: x + 1, 1)
        2
        >>> loop.stop()
    """

    def __init__(self, name: str = "streams") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def call(self, function: Callable[..., T], *values: Any) -> T:
        """Run a function on the loop's thread and return its result."""

        async def once() -> T:
            return function(*values)

        return self.wait(once())

    def wait(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine on the loop and return its result.

        Args:
            coroutine: the coroutine.
            timeout: seconds to wait for the result; None for no limit.
        """
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        """Start a coroutine in the background."""

        def begin() -> None:
            task = asyncio.ensure_future(coroutine)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._loop.call_soon_threadsafe(begin)

    @property
    def _tasks(self) -> set[asyncio.Task[Any]]:
        return self.__dict__.setdefault("_kept", set())  # type: ignore[no-any-return]

    def stop(self) -> None:
        """Cancel all tasks and stop the loop."""

        async def cancel() -> None:
            tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        if self._thread.is_alive():
            self.wait(cancel(), 10.0)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10.0)
