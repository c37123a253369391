"""Tasks: data, model, loss and metrics."""

from paceline.core.task import Arrays, Task
from paceline.tasks.registry import load_task, task_info, task_names, task_options, task_source
from paceline.tasks.synthetic import blobs

__all__ = ["Arrays", "Task", "blobs", "load_task", "task_info", "task_names", "task_options", "task_source"]
