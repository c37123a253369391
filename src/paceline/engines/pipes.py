"""A pipe between a process and the child it forked, whose large tensors go through shared memory.

Both ends are our own processes on one machine. Headers are pickled; tensors and arrays of a page or more
are written once into pages that both map, and copied out once: no model is pickled.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext
from typing import Any

import torch
from torch import Tensor

__all__ = ["End", "pair", "reduce_tensor"]

_LEAST = 1 << 12
"""Tensors below this many bytes stay in the header."""

_MOST = 1 << 28
"""Bytes in flight above which tensors go through the pipe, which makes the sender wait."""


class _Pages:
    """Memory that a process shares with the children that it forks afterwards; it grows on demand."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("paceline")
        self._map: mmap.mmap | None = None
        self.used = 0

    def _mapped(self, size: int) -> mmap.mmap:
        if self._map is None or len(self._map) < size:
            if os.fstat(self.fd).st_size < size:
                os.ftruncate(self.fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
            self._map = mmap.mmap(self.fd, os.fstat(self.fd).st_size)
        return self._map

    def write(self, buffer: memoryview) -> tuple[int, int]:
        start, size = self.used, buffer.nbytes
        self.used = start + -(-size // 64) * 64
        self._mapped(self.used)[start : start + size] = buffer
        return start, size

    def read(self, start: int, size: int) -> bytearray:
        return bytearray(memoryview(self._mapped(start + size))[start : start + size])

    def close(self) -> None:
        os.close(self.fd)


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        """Hand a tensor's bytes over as a buffer."""
        return reduce_tensor(obj)


def reduce_tensor(obj: Any) -> Any:
    """Say how to pickle a tensor by its own bytes, not by those of what it is a view of; else `NotImplemented`."""
    if type(obj) is Tensor and obj.device.type == "cpu" and not obj.requires_grad and obj.layout is torch.strided:
        flat = obj.contiguous().view(-1).view(torch.uint8) if obj.numel() else obj.new_empty(0, dtype=torch.uint8)
        array: Any = flat.numpy()
        return _tensor, (pickle.PickleBuffer(array), obj.dtype, tuple(obj.shape))
    return NotImplemented


def _tensor(data: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not len(data):
        return torch.empty(shape, dtype=dtype)
    if not isinstance(data, bytearray):  # small ones came within the header
        data = bytearray(data)
    return torch.frombuffer(data, dtype=dtype).view(shape)


class End:
    """One end of a pipe.

    Args:
        pipe: for headers.
        outgoing, incoming: pages for the large parts.
    """

    def __init__(self, pipe: Connection, outgoing: _Pages, incoming: _Pages, others: Connection | None = None) -> None:
        self.pipe, self._out, self._in, self._others = pipe, outgoing, incoming, others

    def forked(self) -> None:
        """Close the child's end in this process, so that the pipe ends when the child does."""
        if self._others is not None:
            self._others.close()

    def reuse(self) -> None:
        """Write over what was sent: the other end has read all of it."""
        self._out.used = 0

    def send(self, message: Any) -> None:
        """Send a message made of plain values, tensors, arrays and objects of ours."""
        places: list[tuple[int, int]] = []

        def take(buffer: pickle.PickleBuffer) -> bool:
            raw = buffer.raw()
            if raw.nbytes < _LEAST or self._out.used + raw.nbytes > _MOST:
                return True  # stays in the header
            places.append(self._out.write(raw))
            return False

        header = io.BytesIO()
        _Pickler(header, protocol=5, buffer_callback=take).dump(message)
        self.pipe.send_bytes(pickle.dumps(places))
        self.pipe.send_bytes(header.getbuffer())

    def receive(self) -> Any:
        """Return the next message; raises `EOFError` or `OSError` when the other end is gone."""
        places = pickle.loads(self.pipe.recv_bytes())
        return pickle.loads(self.pipe.recv_bytes(), buffers=[self._in.read(*place) for place in places])

    def close(self) -> None:
        """Close this end."""
        self.pipe.close()
        self._out.close()
        self._in.close()


def pair(context: ForkContext) -> tuple[End, Callable[[], End]]:
    """Return an end, and what makes the other one inside a child that is forked afterwards."""
    mine, other = context.Pipe()
    down, up = _Pages(), _Pages()

    def in_child() -> End:
        mine.close()
        return End(other, up, down)

    return End(mine, down, up, other), in_child
