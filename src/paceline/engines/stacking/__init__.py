"""Training of many clients as one computation: stacked local loops, and one-step clients as one batch."""

from paceline.engines.stacking.kernels import Kernels
from paceline.engines.stacking.measure import Choice, choose, compiled
from paceline.engines.stacking.solver import Solver
from paceline.engines.stacking.tasks import Meeting, RequestFailed
from paceline.engines.stacking.uniform import Uniform

__all__ = ["Choice", "Kernels", "Meeting", "RequestFailed", "Solver", "Uniform", "choose", "compiled"]
