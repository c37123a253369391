"""Tasks: data, model, loss and metrics."""

from paceline.tasks.registry import load_task, task_info, task_names, task_options, task_source
from paceline.tasks.synthetic import blobs
from paceline.tasks.task import Arrays, Task

__all__ = ["Arrays", "Task", "blobs", "load_task", "task_info", "task_names", "task_options", "task_source"]
