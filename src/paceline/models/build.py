"""Make a reference model, or one of a user's own, by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from paceline import registry
from paceline.core.errors import ConfigError, UnknownNameError

__all__ = ["build", "model_options"]

_OFFERED = ("shape", "num_classes", "symbols", "categories")


def model_options(name: str) -> list[str]:
    """Return the options of a model beside ``shape``, ``num_classes``, ``symbols`` and ``categories``, which a task sets."""
    return [n for n in registry.parameters(registry.load("model", name)) if n not in _OFFERED]


def build(name: str, **options: Any) -> nn.Module:
    """Build a model from torch's global random state.

    Args:
        name: see `paceline.registry.names`, or ``package.module:Name``; a hyphen counts as an underscore, and ``logreg``
            is ``logistic``.
        options: ``shape`` of one input, ``num_classes`` (number of outputs), ``symbols`` (number of codes of a text) and
            ``categories`` (inputs of each column of a table, 0 for a number), which a model need not take, and what the model
            itself takes.

    Raises:
        UnknownNameError: for a model or option that does not exist.
        ConfigError: for a value that does not fit, or where no module is made.

    Example:
        >>> sum(p.numel() for p in build("vgg9").parameters())
        1469994
    """
    make = registry.load("model", name)
    known = registry.parameters(make)
    for option in options:
        if option not in known and option not in _OFFERED:
            raise UnknownNameError(f"option of model {name}", option, known)
    made = make(**{option: value for option, value in options.items() if option in known})
    if not isinstance(made, nn.Module):
        raise ConfigError(f"model {name!r} returned a {type(made).__name__}; it must return a torch.nn.Module")
    return made
