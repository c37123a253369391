"""Reference models by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from paceline.core.errors import UnknownNameError
from paceline.models.conv import cnn, femnist_cnn, tiny_cnn, vgg9
from paceline.models.dense import logistic, mlp
from paceline.models.recurrent import lstm
from paceline.models.transformer import char_model, vit

__all__ = ["build", "model_names", "model_options"]

_MODELS: dict[str, Callable[..., nn.Module]] = {
    "logistic": logistic,
    "mlp": mlp,
    "tiny_cnn": tiny_cnn,
    "cnn": cnn,
    "femnist_cnn": femnist_cnn,
    "vgg9": vgg9,
    "lstm": lstm,
    "vit": vit,
    "char_model": char_model,
}
_SHORT = {"logreg": "logistic"}


def model_names() -> list[str]:
    """Return the names of the reference models."""
    return list(_MODELS)


def model_options(name: str) -> list[str]:
    """Return the options of a model, except ``shape`` and ``num_classes``."""
    return [n for n in inspect.signature(_find(name)).parameters if n not in {"shape", "num_classes"}]


def build(name: str, **options: Any) -> nn.Module:
    """Build a reference model with torch's global random state.

    Args:
        name: see `model_names`; a hyphen equals an underscore, and ``logreg`` is ``logistic``.
        options: ``shape`` of one input, ``num_classes``, and the model's own options.

    Raises:
        UnknownNameError: unknown model or option.
        ConfigError: invalid value.

    Example:
        >>> sum(p.numel() for p in build("vgg9").parameters())
        1469994
    """
    make = _find(name)
    known = inspect.signature(make).parameters
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of model {name}", option, known)
    return make(**options)


def _find(name: str) -> Callable[..., nn.Module]:
    plain = name.replace("-", "_")
    plain = _SHORT.get(plain, plain)
    if plain not in _MODELS:
        raise UnknownNameError("model", name, [*_MODELS, *_SHORT])
    return _MODELS[plain]
