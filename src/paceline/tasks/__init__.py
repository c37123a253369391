"""Tasks: data, model, loss and metrics."""

from paceline.tasks.task import Arrays, Task

__all__ = ["Arrays", "Task"]
