"""Tasks: data, model, loss and metrics."""

from paceline.core.task import Arrays, Task
from paceline.tasks.load import load_task, task_info, task_options, task_source
from paceline.tasks.recipe import task_card
from paceline.tasks.schemas import make_schema, schema_of
from paceline.tasks.synthetic import blobs

__all__ = [
    "Arrays",
    "Task",
    "blobs",
    "load_task",
    "make_schema",
    "schema_of",
    "task_card",
    "task_info",
    "task_options",
    "task_source",
]
