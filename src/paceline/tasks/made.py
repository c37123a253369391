"""Derived tasks, built from other tasks or from a seed alone: sequences, black boxes, models to tune.

Each is a function of the registry's ``(model, seed)`` and of its own options; nothing is built before it is used.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass
from typing import Any

from paceline.core.errors import UnknownNameError
from paceline.core.task import Task
from paceline.data.sources import Source, find_source

__all__ = ["MADE", "Made"]


@dataclass(frozen=True)
class Made:
    """A task and the function that builds it.

    Args:
        function: ``module:function`` under `paceline.tasks`; it takes ``model``, ``seed`` and named options.
        about: one-line description.
        model: the reference model.
        source: data read by default, or "" for none.
    """

    function: str
    about: str
    model: str
    source: str = ""

    def load(self, name: str, model: str | None, seed: int, options: dict[str, Any]) -> Task:
        """Build the task; raises `UnknownNameError` for an unknown option."""
        module, _, function = self.function.partition(":")
        make = getattr(importlib.import_module(f"paceline.tasks.{module}"), function)
        known = inspect.signature(make).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            for option in options:
                if option not in known:
                    raise UnknownNameError(f"option of {name}", option, set(known) - {"model", "seed"})
        task: Task = make(model=model, seed=seed, **options)
        return task

    @property
    def options(self) -> set[str]:
        """Names of the task's own options."""
        module, _, function = self.function.partition(":")
        known = inspect.signature(getattr(importlib.import_module(f"paceline.tasks.{module}"), function)).parameters
        return {n for n, p in known.items() if p.kind is not p.VAR_KEYWORD} - {"model", "seed"}

    @property
    def data(self) -> Source | None:
        """Data read by default."""
        return find_source(self.source) if self.source else None

    def info(self) -> str:
        """Return a one-line description of the task and its data."""
        source, line = self.data, f"{self.about}; model {self.model}"
        return line if source is None else f"{line}; data {source.name}; {source.licence}"


MADE: dict[str, Made] = {
    "permuted": Made(
        "sequence:load_permuted",
        "the same samples again and again, each time with shuffled inputs",
        "mlp",
        "digits",
    ),
    "quadratic": Made("blackbox:quadratic", "a synthetic quadratic that clients can only evaluate", "none"),
    "metric": Made("blackbox:metric", "shift a network's weights to a better F1, which has no gradient", "mlp", "digits"),
    "attack": Made("blackbox:attack", "one shift of a picture that misleads the clients' own classifiers", "mlp", "digits"),
    "vit-tuning": Made("vision:load_tuning", "a vision transformer that knows five classes, to be tuned on all", "vit", "digits"),
    "instructions": Made("instructions:load_instructions", "eight categories of made-up instructions about words", "char_model"),
    "chatterbot": Made("instructions:load_chatterbot", "questions and answers by topic", "smollm2-135m", "chatterbot"),
    "split": Made("sequence:load_split", "a few classes after another, each with outputs of its own", "mlp", "digits"),
}
"""Derived tasks by name."""
