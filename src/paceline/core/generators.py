"""Global random generators of torch, Python and NumPy, seeded from streams of a run.

Modules, losses and hooks may draw from global generators: dropout, random augmentation, stochastic depth. A `drawing`
block seeds them with a separate stream and restores them afterwards, so that results depend on seeds alone and the
caller's stream is not affected. Global generators belong to a process; concurrent threads share them.
"""

from __future__ import annotations

import random
import threading
from types import TracebackType
from typing import Any

import numpy as np
import torch

__all__ = ["GeneratorWatch", "drawing", "generators_of", "nested", "reseed", "reseed_nested"]

_MASK = (1 << 32) - 1


class _Depth(threading.local):
    value = 0


_depth = _Depth()


def generators_of(device: torch.device | str) -> list[torch.Generator]:
    """Return torch's global generators used by code on `device`."""
    device = torch.device(device)
    if device.type != "cuda":
        return [torch.default_generator]
    index = torch.cuda.current_device() if device.index is None else device.index
    return [torch.default_generator, torch.cuda.default_generators[index]]


def reseed(seed: int, device: torch.device | str = "cpu") -> None:
    """Seed the global generators with the stream `seed`. Use it within `drawing`, which restores them."""
    for generator in generators_of(device):
        generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & _MASK)


class drawing:
    """Context manager: seed the global generators with the stream `seed`, and restore them on exit.

    Args:
        seed: seed of the stream.
        device: device on which code in the block computes.

    Example:
        >>> with drawing(0):
        ...     first = torch.rand(1)
        >>> with drawing(0):
        ...     bool(torch.rand(1) == first)
        True
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.seed, self.device = seed, device

    def __enter__(self) -> None:
        self._generators = generators_of(self.device)
        self._saved = [g.get_state() for g in self._generators]
        self._python: Any = random.getstate()
        self._numpy: Any = np.random.get_state(legacy=False)
        _depth.value += 1
        reseed(self.seed, self.device)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _depth.value -= 1
        for generator, state in zip(self._generators, self._saved, strict=True):
            generator.set_state(state)
        random.setstate(self._python)
        np.random.set_state(self._numpy)


class nested(drawing):
    """Like `drawing`, but inside another block only `reseed`, at a tenth of the cost.

    Code in the enclosing block must call `reseed_nested` before it draws again.
    """

    def __enter__(self) -> None:
        self._outermost = not _depth.value
        if self._outermost:
            super().__enter__()
        else:
            reseed(self.seed, self.device)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._outermost:
            super().__exit__(kind, error, trace)


def reseed_nested(seed: int, device: torch.device | str = "cpu") -> None:
    """Call `reseed` inside a block; do nothing outside of one, where the generators belong to the caller."""
    if _depth.value:
        reseed(seed, device)


class GeneratorWatch:
    """Detects whether code drew from a global generator; for use within `drawing`.

    Args:
        device: device on which that code computes.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._generators = generators_of(device)
        reseed(_WATCH_SEED, device)
        self._states = [g.get_state() for g in self._generators]

    def advanced(self) -> bool:
        """Return whether anything was drawn since this object was created. Call it once only, because it draws itself."""
        if any(not torch.equal(g.get_state(), s) for g, s in zip(self._generators, self._states, strict=True)):
            return True
        return (random.random(), np.random.random_sample()) != _NEXT


_WATCH_SEED = 0x7061636C


def _next() -> tuple[float, float]:
    return random.Random(_WATCH_SEED).random(), np.random.RandomState(_WATCH_SEED & _MASK).random_sample()


_NEXT = _next()
"""First values of Python's and NumPy's generators after `_WATCH_SEED`; comparing whole states is slower."""
