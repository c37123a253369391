"""What a run sets in the process that it works in, and puts back: torch's threads, precision and flags, random generators.

A call of the library leaves the process as it found it. Worker processes are Paceline's own; they keep what they set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from paceline.core.generators import drawing
from paceline.core.precision import kept_precision, set_precision

__all__ = ["process_state"]

_CUDNN = ("enabled", "benchmark", "deterministic")


@contextmanager
def process_state(seed: int = 0, threads: int | None = None, precision: str | None = None) -> Iterator[None]:
    """Set this process up for a run, and restore it at the end of the block, also where the block raises.

    Args:
        seed: of the stream that the global random generators draw from in the block.
        threads: torch threads; None leaves their number.
        precision: of matrix products and convolutions, as in `RunConfig.precision`; None leaves it.

    Restored are the number of torch threads, the precision of float32 arithmetic, cuDNN's flags, and the global random
    generators of torch (all devices), numpy and Python.
    """
    cudnn = torch.backends.cudnn
    flags = {name: getattr(cudnn, name) for name in _CUDNN}
    before = torch.get_num_threads()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        with drawing(seed), kept_precision():
            if threads is not None:
                torch.set_num_threads(threads)
            if precision is not None:
                set_precision(precision)
            yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
        for name, flag in flags.items():
            if getattr(cudnn, name) != flag:
                setattr(cudnn, name, flag)
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)
