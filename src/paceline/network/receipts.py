"""Conversion of replies into receipts: decode, validate, add to the sum, and time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from paceline.core.engine import Receipt
from paceline.core.errors import PacelineError, WireError
from paceline.core.failures import class_in
from paceline.core.serialization import Limits
from paceline.network import protocol as p
from paceline.network.channels import Intake
from paceline.network.pending_call import Arrival, PendingCall
from paceline.network.stream import Message

__all__ = ["Receipts"]


class Receipts:
    """Builds receipts, on the run's thread.

    Args:
        limits: decoding limits of a reply.
        measured: measure work and transfers in real time; otherwise clients report virtual times.
        note: receives events, such as invalid replies.
        hidden: sums are secure, so clients report no times and arrivals are measured.
    """

    def __init__(
        self, limits: Limits, measured: bool, note: Callable[[str, int | None, dict[str, Any]], None], hidden: bool = False
    ) -> None:
        self._limits, self._measured, self._hidden, self._note = limits, measured, hidden, note
        self.took: dict[int, float] = {}
        """Measured seconds from call to reply of each client's last training in this round."""

    def make(self, phase: PendingCall, arrival: Arrival, taker: Intake) -> Receipt:
        """Return the receipt of an arrival. Any fault of a reply drops its client.

        Args:
            phase: the open call.
            arrival: result of one client.
            taker: receives valid replies.
        """
        message, client = arrival.message, arrival.client
        if message is None:
            return Receipt(client, dropped=arrival.why)
        try:
            receipt = self._facts(phase, client, message.head, message)
            if receipt.dropped is not None:
                return receipt
            if not message.parts:
                raise WireError("a reply arrived without its value")
            return replace(receipt, value=taker.add(client, message.tree(0, self._limits)))
        except PacelineError as error:
            why = f"{type(error).__name__}: {p.clean(error)}"
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
            # structurally valid, but malformed in a way that no check covers
            why = f"AggregationError: a malformed reply: {p.clean(error)}"
        finally:
            message.close()
        self._note("bad_reply", client, {"phase": phase.name, "why": why})
        return Receipt(client, dropped=why, error=class_in(why))

    def _facts(self, phase: PendingCall, client: int, head: Mapping[str, Any], message: Message) -> Receipt:
        """Return the receipt without its value."""
        dropped = head.get("dropped")
        if dropped is not None:
            dropped = p.clean(p.field(head, "dropped", str))
        error = "" if dropped is None else class_in(dropped)
        down, up = p.field(head, "down", int), p.field(head, "up", int)
        if not (0 <= down < 1 << 50 and 0 <= up < 1 << 50):
            raise WireError("a reply reports invalid sizes")
        if not self._measured and not self._hidden:
            return Receipt(client, None, p.seconds(head, "compute"), p.seconds(head, "network"), down, up, dropped, error)
        took = message.ended - phase.sent.get(client, message.began)
        work = min(p.seconds(head, "seconds"), took)
        if self._measured and not self._hidden and p.field(head, "trained", bool):  # under masks clients measure for themselves
            self.took[client] = took
        if self._measured:
            down, up = len(phase.message.data) + phase.own_bytes.get(client, 0), message.opening.size
        return Receipt(client, None, work, took - work, down, up, dropped, error)
