"""Effects of the black-box methods; the loss is F(x), the mean of all clients' objectives.

Both methods get eight rates of the local Adam, which matter most: untuned, the surrogates seemed to be far ahead in the attack.
"""

from __future__ import annotations

from typing import Any

from effect_study.rows import Row, Side

__all__ = ["ROWS"]

_QUADRATIC: dict[str, Any] = {
    "task": "quadratic",
    "task_options": {"dim": 10, "clients": 4, "div": 4.0},
    "clients": 4,
    "cohort": 4,
    "rounds": 12,
    "eval_every": 12,
}
_ATTACK: dict[str, Any] = {
    "task": "attack",
    "task_options": {"of": "mnist-5k", "limit": 500, "epochs": 3},
    "partition": "natural",
    "clients": 10,
    "cohort": 10,
    "rounds": 6,
    "eval_every": 6,
}
_RATES = [0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.6, 1.0]
_SURVEY: dict[str, Any] = {"candidates": 40, "active": 5, "survey_candidates": 60, "survey_active": 15}
_FZOOS = Side("fzoos", {"lr": _RATES}, {"steps": 5, "features": 400} | _SURVEY)
_FEDZO = Side("fedzo", {"lr": _RATES}, {"steps": 5, "directions": 10})
_SCAFFOLD = Side(
    "fedzo", {"lr": _RATES}, {"steps": 5, "directions": 10, "correction": "scaf"}, name="fedzo with SCAFFOLD's correction"
)

ROWS: list[Row] = [
    Row(
        "blackbox/fzoos",
        "surrogate gradients end at a lower F than finite differences where clients disagree",
        _FZOOS,
        _FEDZO,
        _QUADRATIC,
        metric="loss",
        better="lower",
        margin=0.01,
        quick=True,
    ),
    Row(
        "blackbox/fzoos-2",
        "surrogate gradients need fewer queries for the same local steps",
        Side("fzoos", options=_FZOOS.options),
        Side("fedzo", options=_FEDZO.options),
        _QUADRATIC,
        metric="note_queries",
        better="lower",
        ratio=True,
        margin=0.0,
        trials=1,
    ),
    Row(
        "blackbox/fzoos-3",
        "surrogate gradients end at a lower F than finite differences with SCAFFOLD's correction",
        _FZOOS,
        _SCAFFOLD,
        _QUADRATIC,
        metric="loss",
        better="lower",
        margin=0.01,
    ),
    Row(
        "blackbox/fzoos-4",
        "surrogate gradients shift a picture further against ten hidden classifiers",
        _FZOOS,
        _FEDZO,
        _ATTACK,
        metric="loss",
        better="lower",
        margin=0.05,
        note="On 8x8 digits FZooS reached -0.185 and FedZO -0.190 once both had the best of several rates; at one rate of 0.03 "
        "they had been 1.16 apart",
    ),
]
