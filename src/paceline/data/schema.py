"""Schema of a data set: names, kinds, categories, classes, units, missing values and scaling.

It is made once, where a run is defined, and travels with the plan. A site reads its own file by it, by name, so that no
code, class or scale ever depends on one site's rows.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from paceline.core.errors import ConfigError, DataError

__all__ = ["MOST_CATEGORIES", "PictureForm", "Schema", "SchemaColumn", "Target", "Text"]

MOST_CATEGORIES = 100
"""Most categories of a column of texts; a column with more is rather free text or an identifier."""

_MOST_COLUMNS = 100_000
_MOST_CLASSES = 100_000
_MOST_TEXT = 10_000
_MOST_WORDS = 30_000


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _distinct(names: tuple[str, ...], what: str) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{what} {twice!r} is listed twice")


class SchemaColumn(_Part):
    """An input column of a table.

    A number or date becomes one input, ``(value - mean) / deviation``, where a missing value counts as `fill`. A category
    becomes one input for each category, 1 for its own and 0 for the others; a missing value has an input of its own if
    `missing`, and otherwise only zeros, like a category that the schema does not have.

    Args:
        name: name of the column.
        kind: number, category or date (days since 1970-01-01).
        unit: unit of a number, such as mmol/l; for people.
        categories: categories in the order of their inputs.
        missing: whether the data that the schema was made of have missing values here.
        fill: value that replaces missing ones.
        mean, deviation: scaling.
    """

    name: str = Field(min_length=1, max_length=_MOST_TEXT)
    kind: Literal["number", "category", "date"]
    unit: str = Field(default="", max_length=200)
    categories: tuple[str, ...] = Field(default=(), max_length=_MOST_CLASSES)
    missing: bool = False
    fill: float = 0.0
    mean: float = 0.0
    deviation: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _distinct(self.categories, f"column {self.name!r}: category")
        if (self.kind == "category") != bool(self.categories):
            raise ValueError(f"column {self.name!r} is a {self.kind}; only a category has categories, at least one")
        return self

    @property
    def width(self) -> int:
        """Number of inputs of a model that this column becomes."""
        return len(self.categories) + self.missing if self.kind == "category" else 1


class Target(_Part):
    """What a model predicts.

    Args:
        name: name of the column; empty where the files' places tell, as for folders.
        kind: one of classes, a number, or a class for each pixel.
        classes: names of the classes, by code.
        unit: unit of a number; for people.
        mean, deviation: scaling of a number.
    """

    name: str = Field(default="", max_length=_MOST_TEXT)
    kind: Literal["class", "number", "mask"] = "class"
    classes: tuple[str, ...] = Field(default=(), max_length=_MOST_CLASSES)
    unit: str = Field(default="", max_length=200)
    mean: float = 0.0
    deviation: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _distinct(self.classes, "class")
        if (self.kind == "number") == bool(self.classes):
            raise ValueError(f"a target of kind {self.kind} has {'no classes' if self.classes else 'at least one class'}")
        return self


class PictureForm(_Part):
    """Form and scaling of pictures.

    Args:
        height, width: pixels.
        channels: 1 for grey, 3 for RGB, 4 for RGB with alpha.
        top: value of full brightness in the files: 255, 65535 or 1.
        mean, deviation: scaling of each channel, after division by `top`; empty before they are known.
    """

    height: int = Field(ge=1)
    width: int = Field(ge=1)
    channels: int = Field(ge=1, le=64)
    top: float = Field(default=255.0, gt=0)
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.mean) not in (0, self.channels) or len(self.deviation) != len(self.mean):
            raise ValueError(f"mean and deviation need one number for each of the {self.channels} channels")
        if any(value <= 0 for value in self.deviation):
            raise ValueError("deviations must be above 0")
        return self

    @property
    def form(self) -> str:
        """Size and channels, for messages.

        Example:
            >>> PictureForm(height=28, width=28, channels=1).form
            '28x28 pixels, grey'
        """
        return f"{self.height}x{self.width} pixels, {_CHANNELS.get(self.channels, f'{self.channels} channels')}"


_CHANNELS = {1: "grey", 2: "grey with alpha", 3: "RGB", 4: "RGB with alpha"}


class Text(_Part):
    """Form of texts: codes of fixed length.

    Args:
        length: codes of a sample; longer texts are cut, shorter ones padded with 0.
        symbols: number of codes; 256 for the bytes of UTF-8.
        words: vocabulary by code, from 1 on; empty for bytes and other codes. Unknown words are left out.
        spaces: whether words are what spaces separate; otherwise they are runs of letters and digits.
    """

    length: int = Field(ge=1)
    symbols: int = Field(ge=2, le=1 << 20)
    words: tuple[str, ...] = Field(default=(), max_length=_MOST_WORDS)
    spaces: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _distinct(self.words, "word")
        if len(self.words) >= self.symbols:
            raise ValueError(f"{len(self.words)} words need as many symbols and one for padding, not {self.symbols}")
        return self


class Schema(_Part):
    """Schema of a data set; see the module.

    Args:
        version: version of this form.
        content: what a sample is.
        columns: input columns of a table.
        picture, text: form of pictures or texts.
        target: what is predicted.
        standardize: where means and deviations come from: this schema alone, a secure sum over the clients before round 1,
            or none (values stay as they are).

    Example:
        >>> made = Schema(content="table", columns=({"name": "age", "kind": "number"},), target={"classes": ("no", "yes")})
        >>> made.width, Schema.parse(made.to_json()) == made
        (1, True)
    """

    version: Literal[1] = 1
    content: Literal["table", "image", "text"]
    columns: tuple[SchemaColumn, ...] = Field(default=(), max_length=_MOST_COLUMNS)
    picture: PictureForm | None = None
    text: Text | None = None
    target: Target
    standardize: Literal["schema", "federated", "none"] = "schema"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _distinct(tuple(column.name for column in self.columns), "column")
        if any(column.name == self.target.name for column in self.columns):
            raise ValueError(f"column {self.target.name!r} is both an input and the target")
        parts = {"table": bool(self.columns), "image": self.picture is not None, "text": self.text is not None}
        if [name for name, there in parts.items() if there] != [self.content]:
            raise ValueError(f"a schema of content {self.content!r} has {_HAS[self.content]} and nothing of other contents")
        return self

    @property
    def width(self) -> int:
        """Number of inputs that the columns become."""
        return sum(column.width for column in self.columns)

    @property
    def digest(self) -> str:
        """SHA-256 of the schema, part of what the clients of a secure sum agree on."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> str:
        """Return the schema as JSON; defaults are left out."""
        return json.dumps(
            self.model_dump(mode="json", exclude_defaults=True) | {"version": self.version}, indent=2, ensure_ascii=False
        )

    @staticmethod
    def of(value: Any, where: str = "the schema") -> Schema:
        """Return the schema in a tree of plain values, such as one received over a network.

        Raises:
            ConfigError: lists all faults.
        """
        try:
            return Schema.model_validate(value)
        except ValidationError as error:
            faults = [
                f"{'.'.join(map(str, f['loc'])) or 'the whole'}: {f['msg'].removeprefix('Value error, ')}" for f in error.errors()
            ]
            raise ConfigError(f"{where}: {'; '.join(faults[:10])}") from None

    @staticmethod
    def parse(text: str, where: str = "the schema") -> Schema:
        """Return the schema of a JSON text; raises `ConfigError` for any other text."""
        try:
            return Schema.of(json.loads(text), where)
        except (ValueError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{where}: not JSON ({error}); make one with paceline schema FILE --out schema.json") from None

    @staticmethod
    def read(path: str | Path) -> Schema:
        """Return the schema in a file.

        Raises:
            DataError: the file cannot be read.
            ConfigError: it contains no schema.
        """
        try:
            text = Path(path).expanduser().read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"{path}: no schema can be read there ({error}); make one with paceline schema FILE --out {path}"
            ) from None
        return Schema.parse(text, str(path))


_HAS = {"table": "at least one column", "image": "a picture", "text": "a text"}
