"""Cards of reference models: which samples a model takes and what it scores, for listings and for messages."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from torch import nn

from paceline import registry

__all__ = ["Gives", "ModelCard", "Takes", "find_card", "fitting", "model_card"]

Takes = Literal["any", "picture", "series", "text", "table"]
Gives = Literal["sample", "pixel", "position"]

M = TypeVar("M", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class ModelCard:
    """What `paceline models` shows of a model.

    Args:
        takes: samples: ``picture`` [C, H, W], ``series`` [C, T], ``text`` [T] of codes,
            ``table`` [F], or ``any``, which are flattened.
        gives: whether scores are of each sample, each pixel or each position of a text.
        shape, num_classes: an example, for which parameters are counted.
        weights: name of the data source with pretrained weights, or empty.
    """

    takes: Takes = "any"
    gives: Gives = "sample"
    shape: tuple[int, ...] = ()
    num_classes: int = 10
    weights: str = ""


def model_card(takes: Takes, gives: Gives = "sample", shape: tuple[int, ...] = (), weights: str = "") -> Callable[[M], M]:
    """Attach a `ModelCard` to a function that makes a model; by default the example is the function's own defaults."""

    def attach(make: M) -> M:
        defaults = {n: p.default for n, p in inspect.signature(make).parameters.items() if p.default is not p.empty}
        example = shape or tuple(defaults.get("shape", ()))
        card = ModelCard(takes, gives, example, defaults.get("num_classes", 10), weights)
        make.__model_card__ = card  # type: ignore[attr-defined]
        return make

    return attach


def find_card(name: str) -> ModelCard | None:
    """Return the card of a model; None for one of a user's own without a card.

    Example:
        >>> find_card("cnn").takes, find_card("unet").gives
        ('picture', 'pixel')
    """
    found: Any = getattr(registry.load("model", name), "__model_card__", None)
    return replace(found) if isinstance(found, ModelCard) else None


def fitting(takes: Takes, gives: Gives) -> list[str]:
    """Return the built-in models for samples and scores of a kind.

    Example:
        >>> fitting("picture", "pixel")
        ['unet']
    """
    cards = {name: find_card(name) for name in registry.BUILT_IN["model"]}
    return [name for name, card in cards.items() if card is not None and card.gives == gives and suits(card, takes)]


def suits(card: ModelCard, takes: Takes) -> bool:
    """Return whether a model takes samples of a kind; texts are codes, which only models of texts take."""
    return card.takes == takes or (card.takes == "any" and takes != "text")
