"""Ray actor that contains a worker. Its arguments and results are packed, see `paceline.engines.ray_cluster`."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch

from paceline.core.allocator import keep_freed
from paceline.core.engine import Receipt
from paceline.core.profiling import spent
from paceline.core.tree import register
from paceline.engines.ray_cluster import Packed, pack, unpack
from paceline.engines.transfer import complete
from paceline.engines.worker import Worker

__all__ = ["Actor"]


class Actor:
    """Ray actor with one worker."""

    worker: Worker

    def load(self, source: Packed) -> Packed:
        """Build the worker; return the error if that fails."""
        try:
            setup, nodes = unpack(source)
            for entry in nodes:
                register(*entry)
            torch.set_num_threads(setup.threads)
            keep_freed()
            self.worker = Worker(complete(setup))
        except Exception as error:
            return pack(error)
        return pack(None)

    def run(self, message: Packed, rest: Packed) -> tuple[Packed, Packed]:
        """Return (receipts, whether there is a sum, notes, seconds) or an error, and the partial sum."""
        spent.take()
        receipts: list[Receipt] = []
        total = None
        try:
            with spent.on("bookkeeping"):
                call, memories = unpack(rest)
                self.worker.restore(memories)
                for item in self.worker.run(replace(call, message=unpack(message))):
                    if isinstance(item, Receipt):
                        receipts.append(item)
                    else:
                        total = item[1]
        except Exception as error:
            return pack(error), pack(None)
        return pack((receipts, total is not None, self.worker.solver.notes, spent.take())), pack(total)

    def merge(self, mine: Packed, other: Packed) -> Packed:
        """Return the total of two partial sums."""
        total = unpack(mine)
        total.merge(unpack(other))
        return pack(total)

    def ask(self, what: str, *values: Any) -> Packed:
        """Call a method of the worker."""
        value = getattr(self.worker, what)(*values)
        if what == "commit":
            self.worker.memories.clear()
        return pack(value)

    def pid(self) -> int:
        """Return this process's id."""
        return os.getpid()
