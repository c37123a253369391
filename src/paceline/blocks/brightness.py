"""Brightness of a task's pictures: how inputs, which may be standardised, and brightness from 0 to 1 follow from each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paceline.data.schema import Schema

__all__ = ["Brightness"]


@dataclass(frozen=True)
class Brightness:
    """Mean and deviation by which brightness was standardised: inputs = (brightness - mean) / deviation.

    Args:
        mean, deviation: of each channel, shape [C, 1, 1], or one number for all.
        known: whether the task states them; otherwise inputs count as brightness.
    """

    mean: Tensor | float = 0.0
    deviation: Tensor | float = 1.0
    known: bool = False

    @staticmethod
    def of(problem: Any, device: torch.device | str = "cpu") -> Brightness:
        """Return the brightness of a task, whose schema states how pictures were standardised."""
        text = getattr(problem, "info", {}).get("schema")
        picture = None if text is None else Schema.parse(text, "the task").picture
        if picture is None or not picture.mean:
            return Brightness()
        shift, scale = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (picture.mean, picture.deviation))
        return Brightness(shift, scale, True)

    def read(self, x: Tensor) -> Tensor:
        """Return the brightness of inputs."""
        return x * self.deviation + self.mean

    def inputs(self, brightness: Tensor) -> Tensor:
        """Return the inputs of a brightness."""
        return (brightness - self.mean) / self.deviation
