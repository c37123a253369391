"""How a named task is made: what all tasks have in common, and tasks that a function makes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from paceline import registry
from paceline.core.errors import ConfigError, UnknownNameError
from paceline.core.parsing import fitted
from paceline.core.task import Task
from paceline.data.sources import Source, find_source

__all__ = ["FunctionRecipe", "Recipe", "find_recipe", "task_card"]

F = TypeVar("F", bound=Callable[..., Task])


@dataclass(frozen=True)
class Recipe:
    """How a task is made, and what is shown of it before. Nothing is read before `load`.

    Args:
        model: name of the reference model.
        source: name of the data that are read by default, or empty for none.
    """

    model: str = "its own"
    source: str = ""

    @property
    def data(self) -> Source | None:
        """The data that are read by default."""
        return find_source(self.source) if self.source else None

    def options(self, model: str | None) -> set[str]:
        """Return the names of the options that `load` takes with a model, or with the reference model."""
        raise NotImplementedError

    def load(self, name: str, model: str | None, seed: int, options: Mapping[str, Any]) -> Task:
        """Make the task.

        Args:
            name: of the task, for messages.
            model: a model in place of the reference model.
            seed: of the run.
            options: see `options`.

        Raises:
            UnknownNameError: for an option that it does not have.
        """
        raise NotImplementedError

    def info(self) -> str:
        """Return a line on the task, its model and its data."""
        raise NotImplementedError


@dataclass(frozen=True)
class FunctionRecipe(Recipe):
    """A task that a function makes, of other tasks, of a seed, or of a user's own data.

    Args:
        make: returns the task. It may take ``model`` and ``seed``; its other parameters are options.
        about: a line for people.
    """

    make: Callable[..., Task] = Task
    about: str = ""

    @staticmethod
    def of(found: Any, name: str) -> FunctionRecipe:
        """Return the recipe of a function with or without a `task_card`, or of a finished task."""
        if isinstance(found, Task):
            return FunctionRecipe(make=lambda: found, about=found.notes or found.name)
        if not callable(found):
            raise ConfigError(f"task {name!r} is a {type(found).__name__}; it must be {registry.KINDS['task'].what}")
        about = (inspect.getdoc(found) or name).splitlines()[0]
        return FunctionRecipe(**{"make": found, "about": about, **getattr(found, "__card__", {})})

    def options(self, model: str | None) -> set[str]:
        """Return the function's own options."""
        return set(registry.parameters(self.make)) - {"model", "seed"}

    def load(self, name: str, model: str | None, seed: int, options: Mapping[str, Any]) -> Task:
        """Call the function."""
        takes = inspect.signature(self.make).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
            for option in options:
                if option not in takes:
                    raise UnknownNameError(f"option of {name}", option, self.options(model))
        if model is not None and "model" not in takes:
            raise ConfigError(f"task {name!r} has its own model; leave out the model {model!r}")
        if absent := [
            n for n, required in registry.parameters(self.make).items() if required and n not in {*options, "model", "seed"}
        ]:
            raise ConfigError(f"task {name!r} needs {' and '.join(f'{n}=VALUE' for n in absent)}; write {name}?{absent[0]}=VALUE")
        offered = {key: given for key, given in (("model", model), ("seed", seed)) if key in takes}
        task = self.make(**offered, **fitted(self.make, options, f"task {name!r}", options))
        if not isinstance(task, Task):
            raise ConfigError(f"task {name!r} returned a {type(task).__name__}; it must return a paceline.tasks.Task")
        return task

    def info(self) -> str:
        """Return a line on the task, its model and its data."""
        source, line = self.data, f"{self.about}; model {self.model}"
        return line if source is None else f"{line}; data {source.name}; {source.licence}"


def task_card(about: str, model: str, source: str = "") -> Callable[[F], F]:
    """Say what `paceline tasks` shows of a function that makes a task.

    Args:
        about: a line for people.
        model: name of the reference model.
        source: name of the data that are read by default; empty for none.
    """

    def attach(make: F) -> F:
        make.__card__ = {"about": about, "model": model, "source": source}  # type: ignore[attr-defined]
        return make

    return attach


def find_recipe(name: str) -> Recipe:
    """Return how a task is made that is registered or named ``package.module:Name``.

    Raises:
        UnknownNameError: for a task that does not exist.
        ConfigError: where it cannot be imported, or is no task.
    """
    found = registry.load("task", name)
    return found if isinstance(found, Recipe) else FunctionRecipe.of(found, name)
