"""Anarchic clients whose efforts go with their data, and what they would do to a sum that is not rescaled."""

from __future__ import annotations

from typing import Any

from paceline.core.client import Client
from paceline.core.method import on_client
from paceline.methods.asynchronous.afl import AfaCd, AfaCs

__all__ = ["Device", "Silo", "Unnormalised"]

_MEAN_EFFORT = 5.5


class Device(AfaCd):
    """AFA-CD where client i takes 1 + 9 i / 19 steps, rounded down."""

    def effort(self, client: Client) -> int:
        """Return the number of steps."""
        return 1 + client.id * 9 // 19


class Silo(AfaCs):
    """AFA-CS with the same efforts."""

    def effort(self, client: Client) -> int:
        """Return the number of steps."""
        return 1 + client.id * 9 // 19


class Unnormalised(Device):
    """The same with sums of gradients as they are: G K / (mean K)."""

    @on_client
    def train(self, client: Client, message: Any) -> Any:
        """Return the sum of this client's gradients in units of a mean effort."""
        own = super().train(client, message)
        return {**own, "gradient": (self.effort(client) / _MEAN_EFFORT) * own["gradient"]}
