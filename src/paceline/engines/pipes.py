"""Pipe between a process and its child, with shared memory for large tensors.

Both ends are Paceline's own processes on one machine. Headers are pickled; tensors and arrays of a page or more are
written once into pages mapped by both, and copied out once: no model is pickled. The pages are an unnamed file (Linux),
else a temporary file.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["End", "Ending", "freeze", "pair", "reduce_tensor", "thaw"]

_LEAST = 1 << 12
"""Tensors below this size in bytes stay in the header."""

_MOST = 1 << 28
"""Bytes in flight above which tensors go through the pipe, which blocks the sender."""


class _Pages:
    """Memory shared with a child that is started afterwards; it grows on demand.

    Args:
        forked: the child is forked and inherits the open file; otherwise it opens the file by name.
    """

    def __init__(self, forked: bool) -> None:
        self.path = ""
        if forked and hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("paceline")
        else:
            self.fd, self.path = tempfile.mkstemp(prefix="paceline-", dir=_folder())
        self._map: mmap.mmap | None = None
        self.used = 0

    def __getstate__(self) -> str:
        return self.path

    def __setstate__(self, path: str) -> None:
        self.fd, self.path = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0)), path
        self._map, self.used = None, 0

    def unname(self) -> None:
        """Unlink the file once both processes have opened it, if the system permits; the pages live until both have closed it."""
        if self.path:
            with suppress(OSError):
                os.unlink(self.path)

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
        if self._map is not None:
            with suppress(BufferError):
                self._map.close()
        os.close(self.fd)
        self.unname()


def _folder() -> str:
    """Return a folder for temporary files: in memory if there is one with enough space."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4 * _MOST
    return str(memory) if roomy else tempfile.gettempdir()


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        """Pass a tensor's bytes as an out-of-band buffer."""
        return reduce_tensor(obj)


def reduce_tensor(obj: Any) -> Any:
    """Return how to pickle a tensor by its own bytes, excluding the rest of the storage it is a view of; else `NotImplemented`."""
    if type(obj) is Tensor and obj.device.type == "cpu" and not obj.requires_grad and obj.layout is torch.strided:
        flat = obj.contiguous().view(-1).view(torch.uint8) if obj.numel() else obj.new_empty(0, dtype=torch.uint8)
        array: Any = flat.numpy()
        return _tensor, (pickle.PickleBuffer(array), obj.dtype, tuple(obj.shape))
    return NotImplemented


def _tensor(data: Any, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if not len(data):
        return torch.empty(shape, dtype=dtype)
    if not isinstance(data, bytearray):  # small tensors are part of the header
        data = bytearray(data)
    return torch.frombuffer(data, dtype=dtype).view(shape)


class End:
    """One end of a pipe.

    Args:
        pipe: connection for headers.
        outgoing, incoming: pages for large parts.
        others: the child's connection, to be closed in this process.
    """

    def __init__(self, pipe: Connection, outgoing: _Pages, incoming: _Pages, others: Connection | None = None) -> None:
        self.pipe, self._out, self._in, self._others = pipe, outgoing, incoming, others

    def started(self) -> None:
        """Close the child's end in this process, so that the pipe ends when the child does."""
        if self._others is not None:
            self._others.close()

    def reuse(self) -> None:
        """Reuse the outgoing pages: the other end has read everything sent so far."""
        self._out.used = 0

    def send(self, message: Any) -> None:
        """Send a message of plain values, tensors, arrays and Paceline objects."""
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
        """Return the next message; raises `EOFError` or `OSError` if the other end is closed."""
        places = pickle.loads(self.pipe.recv_bytes())
        return pickle.loads(self.pipe.recv_bytes(), buffers=[self._in.read(*place) for place in places])

    def close(self) -> None:
        """Close this end."""
        self.pipe.close()
        self._out.close()
        self._in.close()


@dataclass
class Ending:
    """The child's end of a pipe, to be passed to the child.

    Args:
        pipe: connection for headers.
        outgoing, incoming: pages for large parts.
        inherited: the parent's end, which a forked child has inherited open.
    """

    pipe: Connection
    outgoing: _Pages
    incoming: _Pages
    inherited: Connection | None = None

    def open(self) -> End:
        """Return the opened end; call it in the child."""
        if self.inherited is not None:
            self.inherited.close()
        for pages in (self.outgoing, self.incoming):
            pages.unname()
        return End(self.pipe, self.outgoing, self.incoming)


def pair(context: BaseContext) -> tuple[End, Ending]:
    """Return this process's end, and the object that opens the other end in a child started afterwards with this context."""
    forked = context.get_start_method() == "fork"
    mine, other = context.Pipe()
    down, up = _Pages(forked), _Pages(forked)
    return End(mine, down, up, other), Ending(other, up, down, mine if forked else None)


def freeze(value: Any) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """Pickle a value for a process that is not forked: a header, and the tensors' own bytes.

    Raises what `pickle` raises for objects that another process cannot import by name.
    """
    header, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    _Pickler(header, protocol=5, buffer_callback=buffers.append).dump(value)
    return header.getvalue(), buffers


def thaw(header: bytes, buffers: list[Any]) -> Any:
    """Restore a value pickled by `freeze`, in writable memory."""
    return pickle.loads(header, buffers=[b if isinstance(b, bytearray) else bytearray(b) for b in buffers])
