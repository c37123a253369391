"""A recording of tensor operations on a CPU that behaves as a CUDA graph: replayed operations write into the same tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")


class Recorder(TorchDispatchMode):
    """Runs operations and keeps them; those that a capturing stream refuses raise."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(read in str(func) for read in READS):
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


class Graph:
    """What `Recorder` kept, as a graph."""

    def __init__(self, calls: list[tuple[Any, Any, Any, Any]]) -> None:
        self.calls, self.replays = calls, 0

    def replay(self) -> None:
        """Run the operations again, on the tensors of the recording."""
        self.replays += 1
        with torch.no_grad():
            for func, args, kwargs, out in self.calls:
                if func.is_view:
                    continue
                given = {id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
                for old, new in zip(tree_leaves(out), tree_leaves(func(*args, **kwargs)), strict=True):
                    if isinstance(old, Tensor) and isinstance(new, Tensor) and id(old) not in given and old.numel():
                        old.copy_(new)


def record(recording: Any) -> Graph:
    """Stand in for `Recording.record`."""
    recording.stack.loop()
    with Recorder() as recorder:
        recording.stack.loop()
    return Graph(recorder.calls)
