"""Description of a saved model, ``model.json``: how its module is made, its classes, its schema, and what it takes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from paceline.core.columns import columns
from paceline.core.errors import ConfigError, StoreError
from paceline.core.generators import drawing
from paceline.core.task import Task
from paceline.core.terms import classified
from paceline.data.schema import Schema
from paceline.results.recipe import NotDescribed, described, made
from paceline.store.files import atomic_write
from paceline.tasks.inputs import READING
from paceline.tasks.schemas import schema_of

if TYPE_CHECKING:
    from paceline.core.config import RunConfig

__all__ = ["CARD", "Card", "Kind"]

CARD = "model.json"

Kind = Literal["class", "labels", "number"]
"""What is predicted: one class, any number of labels, or numbers."""


class Card(BaseModel):
    """What is known of a saved model beside its weights.

    Args:
        version: version of this form.
        paceline: version of Paceline that wrote it.
        method, task: of the run.
        whole: whether the weights are those of a whole module; otherwise they are what the clients share.
        module: how the module is made, see `paceline.results.recipe`; None if it cannot be made from a description.
        reason: why it cannot.
        kind: what is predicted.
        classes: names of the classes or labels, by code; numbers where they have no names.
        output: entry of the outputs that holds the scores.
        axis: dimension of the outputs that has a score for each class.
        scaling: mean and deviation of numbers, which the module gives standardised.
        inputs: what the module takes: a tree of dtype, shape of one sample, and for codes their number.
        data_schema: schema of the data; None if the model takes tensors alone.
        reading: options by which the run's own files were read.
        client: number of the client whose own model it is; None for the global one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    version: Literal[1] = 1
    paceline: str
    method: str
    task: str
    whole: bool = True
    module: dict[str, Any] | None = None
    reason: str = ""
    kind: Kind = "class"
    classes: tuple[str, ...] = ()
    output: str | int | None = None
    axis: int = 1
    scaling: tuple[float, float] = (0.0, 1.0)
    inputs: Any = None
    data_schema: Schema | None = None
    reading: dict[str, Any] = Field(default_factory=dict)
    client: int | None = None

    @staticmethod
    def of(task: Task, config: RunConfig, whole: bool = True, client: int | None = None) -> Card:
        """Return the card of a run's model.

        Args:
            task: the task, as the method has fitted it.
            config: of the run.
            whole: whether there is a whole module.
            client: the client whose own model it is.
        """
        from paceline import __version__

        module, reason = None, ""
        if whole:
            try:
                module = described(task.model)
            except NotDescribed as error:
                reason = str(error)
        schema = schema_of(task)
        names = task.classes or (schema.target.classes if schema is not None else ())
        return Card(
            paceline=__version__,
            method=config.method,
            task=config.task,
            whole=whole,
            module=module,
            reason=reason,
            kind=_kind(task),
            classes=tuple(map(str, names)) or tuple(map(str, range(task.num_classes))),
            output=task.output,
            axis=-1 if getattr(task.loss, "name", "") == "next_token" else 1,
            scaling=task.target_scaling,
            inputs=_inputs(task.train.x),
            data_schema=schema,
            reading=_reading(config),
            client=client,
        )

    def build(self, modules: Collection[str] = ()) -> nn.Module:
        """Return a new module with weights of its own.

        Args:
            modules: installed modules, beside one's own, that may be imported for it.

        Raises:
            ConfigError: it cannot be made; says what to do.
        """
        if self.module is None:
            raise ConfigError(f"the model cannot be made again: {self.reason}; or pass model=, or export the model")
        with drawing(0):
            built = made(self.module, modules)
        if not isinstance(built, nn.Module):
            raise ConfigError(f"{self.module['call']} returned a {type(built).__name__}; pass model= with a torch.nn.Module")
        return built

    def to_json(self) -> str:
        """Return the card as JSON; defaults are left out."""
        return json.dumps(self.model_dump(mode="json", exclude_defaults=True) | {"version": self.version}, indent=2)

    def write(self, folder: Path) -> None:
        """Save the card in a folder."""
        atomic_write(folder / CARD, (self.to_json() + "\n").encode())

    @staticmethod
    def read(folder: Path) -> Card | None:
        """Return the card in a folder; None where there is none. Raises `StoreError` for a damaged one."""
        path = folder / CARD
        try:
            return Card.model_validate(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, ValidationError) as error:
            raise StoreError(f"{path} cannot be read: {str(error).splitlines()[0]}; restore it, or delete it") from error


def _kind(task: Task) -> Kind:
    y = task.train.y
    if isinstance(y, Tensor) and classified(task, y[:1]):
        return "class"
    if getattr(task.loss, "name", "") == "bce" or getattr(task.loss, "__name__", "") == "binary_cross_entropy_with_logits":
        return "labels"
    whole = isinstance(y, Tensor) and not y.is_floating_point()
    return "class" if getattr(task.loss, "name", "") == "next_token" or (task.num_classes and whole) else "number"


def _inputs(tree: Any) -> Any:
    """Return dtype and shape of one sample of each column, and the number of codes of whole numbers."""
    if isinstance(tree, Mapping):
        return {"dict": {key: _inputs(part) for key, part in tree.items()}}
    if isinstance(tree, tuple | list):
        return {"tuple": [_inputs(part) for part in tree]}
    if not isinstance(tree, Tensor):
        return {"column": type(tree).__name__}
    found: dict[str, Any] = {"dtype": str(tree.dtype).removeprefix("torch."), "shape": list(tree.shape[1:])}
    if not tree.is_floating_point() and tree.numel():
        found["codes"] = int(max(int(part.max()) for _, part in columns(tree))) + 1
    return found


def _reading(config: RunConfig) -> dict[str, Any]:
    """Return the options by which a run's own files were read."""
    given = dict(parse_qsl(config.task.partition("?")[2], keep_blank_values=True)) | dict(config.task_options)
    return {name: value for name, value in given.items() if name in READING}
