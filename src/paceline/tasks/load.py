"""Tasks by name: a data set, a function that makes one, or a user's own files (``kind:/path``).

Nothing is fetched here, and data are read only by `load_task`.
"""

from __future__ import annotations

from typing import Any

from paceline.core.parsing import with_query
from paceline.core.task import Task
from paceline.data.files import is_file_task
from paceline.data.sources import Source
from paceline.tasks.recipe import Recipe, find_recipe

__all__ = ["load_task", "task_info", "task_options", "task_source"]


def load_task(name: str, model: str | None = None, seed: int = 0, **options: Any) -> Task:
    """Read a task's data and choose its model.

    Pictures become float32 [N, C, H, W], from each channel the mean and divided by the deviation of the
    training samples; text stays codes (uint8) [N, T]; a table stays as its reader standardised it.

    Args:
        name: see `paceline.registry.names`, ``kind:/path`` of a user's own files, or ``package.module:Name``; options may
            follow, as ``?option=value&option=value``.
        model: a model in place of the task's own, by name, likewise with options; it gets the shape and number of classes of the
            data.
        seed: of the choice that `limit` makes; the split into train and test is fixed.
        options: of the data or of the model, such as ``stride`` of shakespeare or ``norm`` of vgg9; and
            ``limit``, the most training samples to keep, drawn at random; and ``peft``, what of the model trains, such as
            ``bias`` or ``lora:rank=8`` (see `parse_tuning`).

    Raises:
        UnknownNameError: for a task, model or option that does not exist.
        ConfigError: for a model that does not fit the data.
        MissingDataError: with the command to run, when the data are not there.
    """
    name, own = with_query(name)
    model, also = with_query(model) if model else (None, {})
    options = own | also | options
    peft = options.pop("peft", None)
    if peft is not None:
        from paceline.tasks.tuning import parse_tuning, tune

        return tune(load_task(name, model, seed, **options), parse_tuning(peft))
    return _recipe(name).load(name, model, seed, options)


def task_source(name: str) -> Source | None:
    """Return the data that a task reads by default, or None where it needs none.

    Raises `UnknownNameError` for a task that does not exist.
    """
    return _recipe(name).data


def task_info(name: str) -> str:
    """Return a line on a task's data, reference model and licence; the data need not be there.

    Raises `UnknownNameError` for a task that does not exist.
    """
    return _recipe(name).info()


def task_options(name: str, model: str | None = None) -> set[str]:
    """Return the options that `load_task` takes for a task and its model.

    Raises `UnknownNameError` for a task or model that does not exist.
    """
    from paceline.models import model_options

    given = set(model_options(model)) if model is not None else set()
    return {"limit", "peft"} | given | _recipe(name).options(model)


def _recipe(name: str) -> Recipe:
    if is_file_task(name):
        from paceline.tasks.datasets import FileRecipe

        return FileRecipe.of(name)
    return find_recipe(name)
