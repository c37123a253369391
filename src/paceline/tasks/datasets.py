"""Tasks that are a data set and the reference model that suits it, with figures that make it learn.

A data set is one that `paceline data fetch` brings (``mnist-5k``), or a user's own files (``kind:/path``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from paceline.core.task import Task
from paceline.data.conform import described
from paceline.data.files import file_kinds, file_options, read_files, stated
from paceline.data.sources import find_source
from paceline.models import model_options
from paceline.tasks.from_data import Content, Defaults, apart, make_task
from paceline.tasks.images import scaled
from paceline.tasks.recipe import Recipe
from paceline.tasks.schemas import standardized

__all__ = ["DataRecipe", "FileRecipe"]

_TEXTS = {"textfolder": 20, "textfiles": 20}
_BATCH: dict[Content, int] = {"image": 20, "text": 128, "table": 20, "series": 20}


@dataclass(frozen=True)
class DataRecipe(Recipe):
    """A named data set.

    Args:
        defaults: content, and figures that make the reference model learn.
    """

    defaults: Defaults = field(default_factory=Defaults)

    def options(self, model: str | None) -> set[str]:
        """Return the options of the model and of the data."""
        source = find_source(self.source)
        return {*model_options(model or self.model), *source.fetched, *source.chosen}

    def load(self, name: str, model: str | None, seed: int, options: Mapping[str, Any]) -> Task:
        """Read the data."""
        limit, for_model, for_data = apart(options, model or self.model)
        source = find_source(self.source)
        return make_task(name, model or self.model, for_model, self.defaults, source.load(**for_data), source.about, limit, seed)

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
        batch = _TEXTS.get(name.partition(":")[0], _BATCH[kind.content])
        return FileRecipe(kind.model, "", Defaults(kind.content, batch, kind.content == "text"), name)

    def options(self, model: str | None) -> set[str]:
        """Return the options of the reader."""
        return {*file_options(self.name), "standardize"}

    def load(self, name: str, model: str | None, seed: int, options: Mapping[str, Any]) -> Task:
        """Read the files; options are the model's only where one is given."""
        limit, for_model, for_data = apart(options, model)
        files, own = stated(name, "standardize")
        standardize = for_data.pop("standardize", own)
        kind, raw = read_files(files, **for_data)
        if standardize is not None:
            schema = standardized(scaled(described(raw, self.defaults.content), raw.train), standardize)
            raw = read_files(files, **for_data, schema=schema)[1] if standardize == "none" else replace(raw, schema=schema)
        defaults, suited = self.defaults, self.model
        if raw.schema is not None and raw.schema.content != defaults.content:  # of arrays, which may be pictures
            defaults = replace(defaults, content=raw.schema.content)
            suited = "cnn" if raw.schema.content == "image" else suited
        return make_task(name, model or suited, for_model, defaults, raw, kind.about, limit, seed)

    def info(self) -> str:
        """Return a line on the format and the model."""
        return f"your own files; model {self.model}"


DIGITS = DataRecipe("mlp", "digits", Defaults(batch_size=5, lr=0.2))
MNIST_5K = DataRecipe("tiny_cnn", "mnist-5k", Defaults(batch_size=10, lr=0.1))
FASHION_MNIST = DataRecipe("cnn", "fashion-mnist")
CIFAR10_TEST_SPLIT = DataRecipe("vgg9", "cifar10-test-split")
FONTWRITERS = DataRecipe("femnist_cnn", "fontwriters", Defaults(batch_size=10))
HEART_DISEASE = DataRecipe("mlp", "heart-disease", Defaults("table", 16, lr=0.03, metrics=("accuracy", "auroc")))
CD4 = DataRecipe("mlp", "cd4", Defaults("table", 20, lr=0.03))
WATCH_ACTIVITY = DataRecipe("cnn1d", "watch-activity", Defaults("series", 20, in_time=True))
LIFE_EXPECTANCY = DataRecipe("gru", "life-expectancy", Defaults("series", 10, in_time=True, lr=0.2))
NEWSGROUPS = DataRecipe("word_bag", "20newsgroups", Defaults("text", 20))
FILM_GENRES = DataRecipe("word_bag", "film-genres", Defaults("text", 20, lr=20.0))
SPOKEN_DIGITS = DataRecipe("tiny_cnn", "spoken-digits", Defaults(batch_size=10, lr=0.1))
SHAKESPEARE = DataRecipe("lstm", "shakespeare", Defaults("text", 128, in_time=True))
