"""Many clients as one computation: stacked local loops, and one-step clients as one batch."""

from paceline.engines.stacking.meeting import Meeting, NotAtOnce
from paceline.engines.stacking.solve import Solver

__all__ = ["Meeting", "NotAtOnce", "Solver"]
