"""Directional effects of the black-box methods; the loss is F(x), the mean of all clients' objectives.

A row holds when it does with every seed.
"""

from __future__ import annotations

from typing import Any

__all__ = ["ROWS"]

_QUADRATIC: dict[str, Any] = {
    "task": "quadratic",
    "task_options": {"dim": 10, "clients": 4, "div": 4.0},
    "clients": 4,
    "cohort": 4,
    "rounds": 12,
}
_ATTACK: dict[str, Any] = {"task": "attack", "partition": "natural", "clients": 10, "cohort": 10, "rounds": 8}
_SURROGATE: dict[str, Any] = {
    "steps": 5,
    "lr": 0.03,
    "features": 400,
    "candidates": 40,
    "active": 5,
    "survey_candidates": 60,
    "survey_active": 15,
}
_DIFFERENCES: dict[str, Any] = {"steps": 5, "lr": 0.03, "directions": 10}


def _row(claim: str, config: dict[str, Any], metric: str = "loss", **baseline: Any) -> dict[str, Any]:
    return {
        "method": "fzoos",
        "baseline": "fedzo",
        "claim": claim,
        "config": config,
        "method_options": _SURROGATE,
        "baseline_options": _DIFFERENCES | baseline,
        "metric": metric,
        "direction": "lower",
        "holds": lambda ours, theirs: all(m < b for m, b in zip(ours, theirs, strict=True)),
    }


ROWS: list[dict[str, Any]] = [
    _row("surrogate gradients end at a lower F than finite differences on clients that disagree", _QUADRATIC),
    _row("and ask fewer queries for it", _QUADRATIC, "note_queries"),
    _row("they end lower than finite differences with SCAFFOLD's correction too", _QUADRATIC, correction="scaf"),
    _row("they shift a picture further against ten hidden classifiers", _ATTACK),
]
