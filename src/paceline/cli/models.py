"""`paceline models`."""

from __future__ import annotations

import inspect
from typing import Any

from rich.markup import escape

from paceline import registry
from paceline.cli.run import Json
from paceline.cli.show import out, print_json, show_error, table
from paceline.core.errors import PacelineError, SubmodelError

__all__ = ["model_rows", "models"]

_SAMPLES = {
    "any": "any, flattened",
    "picture": "picture [C, H, W]",
    "series": "series [C, T]",
    "text": "text [T] of codes",
    "table": "row of a table [F]",
}
_SET = {"shape", "num_classes", "symbols", "categories"}
"""Options that a task sets."""


def models(json: Json = False) -> None:
    """List the models: samples that they take, what they score, parameters, whether sub-models can be cut, and options."""
    found = model_rows()
    if json:
        print_json(found)
        return
    listed = table(
        "Models, set with --model NAME and --task-option OPTION=VALUE",
        "name",
        "takes",
        "scores of each",
        "parameters",
        "sub-models",
        "options",
    )
    for row in found:
        options = ", ".join(f"{option['name']}={option['default']}" for option in row["options"])
        size = f"{row['parameters']:,}" if row["parameters"] is not None else "–"
        whole = "no" if row["submodels"] is False else "yes" if row["submodels"] else "–"
        listed.add_row(*map(escape, (row["name"], row["takes"], row["scores"], size, whole, options)))
    out().print(listed)
    out().print(
        "parameters: with the example that --json names; sub-models: layers can be cut for methods against stragglers",
        soft_wrap=True,
    )
    out().print("your own: package.module:Class, see docs/bring_your_own.md", soft_wrap=True)


def model_rows() -> list[dict[str, Any]]:
    """Return what is shown of each model; write what cannot be imported to stderr."""
    found = []
    for name in registry.names("model"):
        try:
            found.append(_row(name))
        except PacelineError as error:
            show_error(error, as_json=False)
    return found


def _row(name: str) -> dict[str, Any]:
    from paceline.models.card import find_card

    make, card = registry.load("model", name), find_card(name)
    options = [
        {"name": n, "default": "required" if p.default is p.empty else p.default}
        for n, p in inspect.signature(make).parameters.items()
        if n not in _SET and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    shown: dict[str, Any] = {
        "name": name,
        "about": inspect.cleandoc(make.__doc__ or "").split("\n\n")[0].replace("\n", " "),
        "takes": "" if card is None else _SAMPLES[card.takes],
        "scores": "" if card is None else card.gives,
        "weights": "" if card is None else card.weights,
        "example": None,
        "parameters": None,
        "submodels": None,
        "why_whole": "",
        "options": options,
    }
    return shown | (_measured(name) if card is not None and card.shape else {})


def _measured(name: str) -> dict[str, Any]:
    """Return the parameters of a model, and whether sub-models can be cut, for the example of its card."""
    import torch

    from paceline.core.generators import drawing
    from paceline.models import build
    from paceline.models.card import find_card
    from paceline.submodels.graph import UnitGraph

    card = find_card(name)
    assert card is not None
    with drawing(0):
        module = build(name, shape=card.shape, num_classes=card.num_classes)
    example = torch.ones(2, *card.shape, dtype=torch.uint8 if card.takes == "text" else torch.float32)
    try:
        UnitGraph.trace(module, example)
        cut, why = True, ""
    except SubmodelError as error:
        cut, why = False, str(error)
    return {
        "example": {"shape": list(card.shape), "num_classes": card.num_classes},
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "submodels": cut,
        "why_whole": why,
    }
