"""A trained model that predicts from raw data: module, schema and names of the classes in one object.

Nothing of training is imported: neither methods nor engines, nor the code by which a task was defined, unless the module's
class is part of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paceline.core.checks import model_maker
from paceline.core.columns import call, columns, map_tree
from paceline.core.errors import ConfigError, DataFormatError, StoreError
from paceline.core.losses import scores
from paceline.data.cells import is_missing
from paceline.results.card import Card
from paceline.results.prediction import Prediction
from paceline.store.weights import check_names, read_weights
from paceline.tasks.inputs import Inputs, inputs_of

__all__ = ["Predictor", "load_predictor"]


@dataclass
class Predictor:
    """A model that predicts.

    Args:
        card: what is known of the model.
        module: the module, in evaluation mode.
        where: its origin, for messages.
    """

    card: Card
    module: nn.Module
    where: str = "the model"

    def predict(
        self,
        data: Any,
        *,
        columns: Mapping[str, str] | None = None,
        batch_size: int = 256,
        advice: str = "",
        **reading: Any,
    ) -> Prediction:
        """Predict from raw data; see `paceline.tasks.inputs.inputs_of` for what they may be.

        Args:
            data: a file, rows, pictures, texts or tensors.
            columns: the schema's name of a column, by the data's own.
            batch_size: samples per forward pass.
            advice: what to do about a column that has another name, for the message.
            reading: options of how cells are read, such as ``na="N/A"``; by default those of the run.

        Raises:
            SchemaError: columns are missing, or samples have another form.
            DataFormatError: the data cannot be read, or the model does not take them.
        """
        options = {**self.card.reading, **reading}
        inputs = inputs_of(data, self.card.data_schema, columns=columns, reading=options, advice=advice)
        if not len(inputs):
            raise DataFormatError("there are no samples to predict from")
        out = self.outputs(inputs.x, batch_size)
        out = out if self.card.axis == 1 or self.card.kind != "class" else out.movedim(self.card.axis, 1)
        if self.card.kind == "number" and self.card.scaling != (0.0, 1.0):
            mean, deviation = self.card.scaling
            out = out.double() * deviation + mean
        truth = self._truth(inputs)
        notes = (*inputs.notes, *self._doubts(truth))
        return Prediction(out, self.card.kind, self.card.classes, inputs.names, notes, truth)

    @torch.no_grad()
    def outputs(self, x: Any, batch_size: int = 256) -> Tensor:
        """Return the scores of samples as the module takes them.

        Args:
            x: a tensor of shape [N, ...], or a tuple or dict of them.
            batch_size: samples per forward pass.

        Raises:
            DataFormatError: the module does not take them.
        """
        self.module.eval()
        count, kind = len(next(columns(x))[1]), next((p.dtype for p in self.module.parameters()), torch.float32)
        x = map_tree(lambda part: part.to(kind) if part.is_floating_point() else part, x)
        parts: list[Tensor] = []
        for start in range(0, count, batch_size):
            rows = slice(start, start + batch_size)
            batch = map_tree(partial(_part, rows), x)
            try:
                out = call(self.module, batch)
            except (RuntimeError, TypeError, IndexError, ValueError) as error:
                raise DataFormatError(
                    f"{self.where} does not take samples of {_forms(batch)}, but of {_forms(self.card.inputs)} "
                    f"({str(error).splitlines()[0]})"
                ) from error
            parts.append(scores(out, self.card.output).detach())
        return torch.cat(parts)

    def _truth(self, inputs: Inputs) -> tuple[str, ...]:
        schema, table = self.card.data_schema, inputs.table
        if schema is None or table is None or schema.target.name not in table.columns:
            return ()
        cells = table.columns[schema.target.name]
        names = {**{name: name for name in schema.target.classes}}
        truth = tuple("" if is_missing(cell) and cell not in names else names.get(cell, _whole(cell)) for cell in cells)
        return truth if any(truth) else ()

    def _doubts(self, truth: Sequence[str]) -> list[str]:
        """Return notes on rows that have no class, or one that the model does not have."""
        if self.card.kind != "class":
            return []
        notes, unknown = [], Counter(name for name in truth if name and name not in self.card.classes)
        if unknown:
            shown = ", ".join(f"{name[:60]!r} {count}x" for name, count in unknown.most_common(5))
            notes.append(f"{sum(unknown.values())} rows with classes that the model does not have: {shown}")
        if lost := sum(not name for name in truth):
            notes.append(f"{lost} rows without a class, which do not count for the accuracy")
        return notes


def _part(rows: slice, column: Tensor) -> Tensor:
    return column[rows]


def _whole(cell: str) -> str:
    """Return a whole number without decimals, as the classes of a column of numbers are named."""
    try:
        return str(int(float(cell))) if float(cell) % 1 == 0 else cell
    except (ValueError, OverflowError):
        return cell


def _forms(tree: Any) -> str:
    if isinstance(tree, Tensor):
        return f"{tree.dtype} and shape {list(tree.shape[1:])}".removeprefix("torch.")
    if isinstance(tree, Mapping) and "shape" in tree:
        return f"{tree['dtype']} and shape {tree['shape']}"
    return ", ".join(f"{name} {_forms(part)}" for name, part in columns(tree))


def load_predictor(
    folder: str | Path,
    model: nn.Module | type[nn.Module] | Callable[[], nn.Module] | None = None,
    modules: Collection[str] = (),
) -> Predictor:
    """Return the model in a run's folder, or in a client's folder of its own model.

    Args:
        folder: the folder.
        model: a module, its class or a function that makes one, where it cannot be made from its description.
        modules: installed modules, beside one's own, that may be imported for the model.

    Raises:
        StoreError: there is no model, or it is damaged.
        ConfigError: the module cannot be made, or clients have models of their own only.
        LayoutError: the weights do not fit the module.
    """
    place = Path(folder).expanduser()
    card = Card.read(place)
    if card is None:
        raise StoreError(f"{place} has no model.json; name a run that has ended, or a client's folder of its own model")
    if not card.whole:
        raise ConfigError(f"{place}: {card.method} has no global model; each client has its own, so name one: client=0")
    weights = read_weights(place)
    module = model_maker(model)() if model is not None else card.build(modules)
    check_names(module, weights, str(place / "model.safetensors"), type(module).__name__)
    module.load_state_dict(weights, strict=True)
    return Predictor(card, module.eval(), str(place))
