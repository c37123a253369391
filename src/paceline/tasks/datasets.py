"""Tasks that are a data set and the reference model that suits it, with figures that make it learn.

A data set is one that `paceline data fetch` brings (``mnist-5k``), or a user's own files (``kind:/path``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from paceline import registry
from paceline.core.errors import ConfigError
from paceline.core.random import numpy_rng
from paceline.core.task import Arrays, Task
from paceline.core.wording import setting
from paceline.data.conform import described
from paceline.data.files import file_kinds, file_options, read_files
from paceline.data.schema import Schema
from paceline.data.sources import find_source
from paceline.models import build, model_options
from paceline.tasks.images import channels_first, measured, scaled
from paceline.tasks.recipe import Recipe
from paceline.tasks.scaling import with_scaling
from paceline.tasks.schemas import standardized

if TYPE_CHECKING:
    from paceline.data.raw import Part, RawData

__all__ = ["DataRecipe", "FileRecipe"]

Content = Literal["image", "text", "table"]

_BATCH: dict[Content, int] = {"image": 20, "text": 128, "table": 20}
_LR = {"lstm": 1.0}
_TEXT_MODELS = {"lstm"}


@dataclass(frozen=True)
class DataRecipe(Recipe):
    """A named data set.

    Args:
        content: of a sample.
        batch_size, lr: of local training; `benchmarks/defaults.py` searches them.
        in_time: whether a client's samples follow each other in time.
    """

    content: Content = "image"
    batch_size: int = 20
    lr: float = 0.05
    in_time: bool = False

    def options(self, model: str | None) -> set[str]:
        """Return the options of the model and of the data."""
        source = find_source(self.source)
        return {*model_options(model or self.model), *source.fetched, *source.chosen}

    def load(self, name: str, model: str | None, seed: int, options: Mapping[str, Any]) -> Task:
        """Read the data."""
        limit, for_model, for_data = _sorted(options, model or self.model)
        source = find_source(self.source)
        return _make(name, model or self.model, for_model, self, source.load(**for_data), source.about, limit, seed)

    def info(self) -> str:
        """Return a line on the data, the model and the licence."""
        source = find_source(self.source)
        return f"{source.about}; model {self.model}; {source.licence}"


@dataclass(frozen=True)
class FileRecipe(DataRecipe):
    """A user's own files.

    Args:
        name: ``kind:/path``.
    """

    name: str = ""

    @staticmethod
    def of(name: str) -> FileRecipe:
        """Return the recipe for ``kind:/path``; what is wrong with it is said by `load`."""
        kind = file_kinds().get(name.partition(":")[0])
        if kind is None:
            return FileRecipe(name=name)
        return FileRecipe(kind.model, "", kind.content, _BATCH[kind.content], in_time=kind.content == "text", name=name)

    def options(self, model: str | None) -> set[str]:
        """Return the options of the reader."""
        return {*file_options(self.name), "standardize"}

    def load(self, name: str, model: str | None, seed: int, options: Mapping[str, Any]) -> Task:
        """Read the files; options are the model's only where one is given."""
        limit, for_model, for_data = _sorted(options, model)
        standardize = for_data.pop("standardize", None)
        kind, raw = read_files(name, **for_data)
        if standardize is not None:
            schema = standardized(scaled(described(raw, self.content), raw.train), standardize)
            raw = read_files(name, **for_data, schema=schema)[1] if standardize == "none" else replace(raw, schema=schema)
        if raw.schema is not None and raw.schema.content != self.content:  # of arrays, which may be pictures
            content = raw.schema.content
            suits = replace(self, content=content, model="cnn" if content == "image" else self.model)
            return _make(name, model or suits.model, for_model, suits, raw, kind.about, limit, seed)
        return _make(name, model or self.model, for_model, self, raw, kind.about, limit, seed)

    def info(self) -> str:
        """Return a line on the format and the model."""
        return f"your own files; model {self.model}"


DIGITS = DataRecipe("mlp", "digits", batch_size=5, lr=0.2)
MNIST_5K = DataRecipe("tiny_cnn", "mnist-5k", batch_size=10, lr=0.1)
FASHION_MNIST = DataRecipe("cnn", "fashion-mnist")
CIFAR10_TEST_SPLIT = DataRecipe("vgg9", "cifar10-test-split")
FONTWRITERS = DataRecipe("femnist_cnn", "fontwriters", batch_size=10)
SHAKESPEARE = DataRecipe("lstm", "shakespeare", "text", 128, in_time=True)


def _sorted(options: Mapping[str, Any], model: str | None) -> tuple[int | None, dict[str, Any], dict[str, Any]]:
    """Return the limit, the options of the model and those of the data."""
    rest = dict(options)
    limit = rest.pop("limit", None)
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise ConfigError(f"limit={limit!r} must be a whole number of at least 1")
    known = set(model_options(model)) if model is not None else set()
    return limit, {k: v for k, v in rest.items() if k in known}, {k: v for k, v in rest.items() if k not in known}


def _make(
    name: str,
    model: str,
    options: dict[str, Any],
    suits: DataRecipe,
    raw: RawData,
    about: str,
    limit: int | None,
    seed: int,
) -> Task:
    plain = model.replace("-", "_")
    assert raw.test is not None
    reference = model in registry.BUILT_IN["model"] or plain in registry.BUILT_IN["model"]
    schema = _trainable(name, described(raw, suits.content), model, reference)
    if reference and (suits.content == "text") != (plain in _TEXT_MODELS):
        raise ConfigError(f"model {model} does not fit {name}, whose samples are {suits.content}s")
    train, test = raw.train, raw.test
    if limit is not None and limit < len(train):
        train = train.take(np.sort(numpy_rng(seed, "limit", name).permutation(len(train))[:limit]))
    x, x_test, schema = _inputs(schema, train, test)
    make: Callable[[], nn.Module] = partial(build, model, shape=tuple(x.shape[1:]), num_classes=len(raw.classes), **options)
    make = with_scaling(make, schema) if schema.standardize == "federated" else make
    with torch.device("meta"):
        make()  # a model that does not fit is told of now, not in the first round
    return Task(
        name=name,
        train=Arrays(x, torch.from_numpy(train.y), _owner(train), raw.owners),
        test=Arrays(x_test, torch.from_numpy(test.y), _owner(test), raw.owners),
        model=make,
        num_classes=len(raw.classes),
        lr=_LR.get(plain, suits.lr),
        batch_size=suits.batch_size,
        notes=about,
        info={"model": plain, "schema": schema.to_json(), **({"read": "\n".join(raw.notes)} if raw.notes else {})},
        classes=raw.classes,
        in_time=suits.in_time and bool(raw.owners),
        overlap=raw.overlap,
    )


def _owner(part: Part) -> Tensor | None:
    return None if part.owner is None else torch.from_numpy(part.owner)


def _trainable(name: str, schema: Schema, model: str, reference: bool) -> Schema:
    """Return the schema of data that a task can have; the one place that says which can be read but not trained yet.

    Raises:
        ConfigError: names what there is no task for.
    """
    target = schema.target
    if target.kind == "number":
        raise ConfigError(
            f"{name}: the target {target.name!r} is a number, so this is a regression, for which files have no task yet; write "
            "target_kind=class if the numbers are classes, or name another column with target="
        )
    if target.kind == "mask":
        raise ConfigError(f"{name}: the targets are masks, for which files have no task yet; write the task as package.module:Name")
    if schema.text is not None and reference and schema.text.symbols != len(target.classes):
        raise ConfigError(
            f"{name}: these are texts of {len(target.classes)} classes, for which no reference model fits; name one of your own, "
            f"which takes the bytes of a text: {setting('model', 'package.module:Name')}"
        )
    return schema


def _inputs(schema: Schema, train: Part, test: Part) -> tuple[Tensor, Tensor, Schema]:
    """Return the inputs of both parts as tensors, and the schema with the scaling of pictures."""
    if schema.picture is None:
        return torch.from_numpy(train.x), torch.from_numpy(test.x), schema
    top = schema.picture.top
    x, x_test = channels_first(train.x, top), channels_first(test.x, top)
    picture = measured(schema.picture, x)
    shift, scale = (torch.tensor(values).view(1, -1, 1, 1) for values in (picture.mean, picture.deviation))
    return x.sub_(shift).div_(scale), x_test.sub_(shift).div_(scale), schema.model_copy(update={"picture": picture})
