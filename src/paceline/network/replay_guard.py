"""Replay guard of a client: refuses repeated calls, rollbacks, and functions that are not client functions.

These checks apply whatever the client's policy:

- Call ids only increase, and a round reported as safe is never repeated.
- Only registered client functions run, and a function whose replies may only be seen summed is never executed for
  individual replies.

Openings of secure sums are recorded separately, over all runs: `paceline.aggregation.secure.client_openings`.
The guard's file is written before the answer is sent.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paceline.core.errors import ProtocolError
from paceline.core.method import ClientFunction
from paceline.network import protocol as p
from paceline.store import load_checkpoint, save_checkpoint

__all__ = ["Guard"]


class Guard:
    """Validates every call before it runs.

    Args:
        path: file of the guard's state.
        functions: permitted client functions, by program.
        durable: sync the file, so that a power failure cannot reset the guard.

    Raises:
        CheckpointError: the file is damaged.
    """

    def __init__(
        self, path: str | os.PathLike[str], functions: Mapping[str, Mapping[str, ClientFunction]], durable: bool = True
    ) -> None:
        self.path, self.functions, self.durable = Path(path), functions, durable
        self.incarnation = self.saved = self.last = 0
        if self.path.exists():
            kept = load_checkpoint(self.path)
            self.incarnation, self.saved = kept["incarnation"], kept["saved"]

    def join(self, incarnation: int, round: int) -> None:
        """Validate the server's progress.

        Args:
            incarnation: number of starts of the server.
            round: last completed round.

        Raises:
            ProtocolError: the progress is behind the last safe state.
        """
        if incarnation < self.incarnation:
            raise ProtocolError(
                f"the server reports {incarnation} starts, after {self.incarnation} earlier; it was reset: start a new run"
            )
        if round < self.saved:
            raise ProtocolError(f"the server went back to round {round}, although round {self.saved} was saved; start a new run")
        self.incarnation = incarnation
        self._save()

    def safe(self, saved: int) -> None:
        """Record that the server's checkpoint of round `saved` is safe."""
        if saved > self.saved:
            self.saved = saved
            self._save()

    def call(self, head: Mapping[str, Any], done: int) -> None:
        """Validate a call.

        Args:
            head: head of the call.
            done: last committed round.

        Raises:
            ProtocolError: the call must not be answered.
            WireError: the head is malformed.
        """
        number, round = p.field(head, "id", int), p.field(head, "round", int)
        program, function = p.field(head, "program", str), p.field(head, "function", str)
        if number <= self.last or number >> 32 != self.incarnation:
            raise ProtocolError(f"call {number} is a replay; call {self.last} was already answered")
        if round <= done:
            raise ProtocolError(f"round {round} is over; this client has committed round {done}")
        self.last = number
        declared = self._declared(program, function)
        channel = head.get("channel")
        kind = channel.get("kind") if isinstance(channel, dict) else None
        if program in ("method", "nested") and kind == "each" and not (declared.each or self._is_peer_record(function)):
            raise ProtocolError(f"{function!r} may be seen only summed, but a single reply was requested")

    def _declared(self, program: str, function: str) -> ClientFunction:
        declared = self.functions.get(program, {}).get(function)
        if declared is None:
            raise ProtocolError(f"{program}.{function} is not a client function")
        return declared

    def _is_peer_record(self, function: str) -> bool:
        """Return whether a function's record is published to the other clients, in plain text if sums are plain."""
        return any(d.peer_record == function for d in self.functions["method"].values())

    def _save(self) -> None:
        save_checkpoint(self.path, {"incarnation": self.incarnation, "saved": self.saved}, durable=self.durable)
