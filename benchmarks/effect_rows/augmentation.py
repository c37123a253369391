"""Effects of augmentation: with few pictures on each client, and with few objects in the scenes of a detector."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch

from effect_study.rows import FRESH, Row, Side
from made import moved
from paceline.tasks import load_task

__all__ = ["ROWS"]

_RATES: dict[str, Any] = {"lr": [0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07]}
_SCENES: dict[str, Any] = {
    "task": "emoji-scenes",
    "task_options": {"share": 0.3, "tests": 200, "samples": 120},
    "clients": 4,
    "cohort": 4,
    "rounds": 20,
    "eval_every": 20,
}
_DETECTOR: dict[str, Any] = {"epochs": 2, "momentum": 0.9}
_ANY: dict[str, Any] = {"bank": "public", "what": "any", "where": "anywhere"}
_SURE = 0.3
"""Score from which a detection counts; CenterNet's own."""
_FITTING = Side("semaug", _RATES, _DETECTOR | {"bank": "public", "top": 1})

_FEW: dict[str, Any] = {
    "task": "mnist-5k",
    "model": "tiny_cnn",
    "task_options": {"limit": 200},
    "clients": 5,
    "cohort": 5,
    "rounds": 30,
    "eval_every": 30,
}
_moved = functools.partial(moved, of="mnist-5k", model="tiny_cnn", limit=200)
_SHAPES = ["identity", "rotate", "translate-x", "translate-y", "shear-x", "invert"]
_LEARNT: dict[str, Any] = {"epochs": 3, "batch_size": 16, "margin": 0, "mirror": False, "erase": 0.0, "operations": _SHAPES}
_LEARNING: dict[str, Any] = {"lr": [0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3]}
_SHORT: dict[str, Any] = {"scale": 15.0, "temperature": 1.0}

_MADAUG = Side("madaug", _LEARNING, _LEARNT | _SHORT | {"policy_lr": 0.01})


@torch.no_grad()
def preference(summary: Any) -> float:
    """Return by how much rotation is more probable than inversion, the mean over 1,000 moved test pictures."""
    module, x = summary.final.whole().eval(), _moved(summary.config.seed)["task"].test.x[:1000]
    shares = module.levels(module.features(x))[1].exp().mean(0)
    return float(shares[_SHAPES.index("rotate")] - shares[_SHAPES.index("invert")])


@torch.no_grad()
def impossible_pairs(summary: Any) -> float:
    """Return the share of pairs of a test scene and a class that does not belong there of which an object is detected."""
    config, module = summary.config, summary.model()
    test = load_task(config.task, config.model, config.seed, **config.task_options).test
    found = module(test.x)
    sure = (found["scores"] >= _SURE)[..., None] & (found["labels"][..., None] == torch.arange(module.classes))
    foreign = torch.arange(module.classes) // 2 != test.owner[:, None]  # two classes for each background, in its order
    return float(sure.any(1)[foreign].float().mean())


def _fixed(name: str, **options: Any) -> Side:
    """Return MADAug whose policy is not trained."""
    return Side("madaug", _LEARNING, _LEARNT | _SHORT | {"policy": "frozen"} | options, name=name)


ROWS: list[Row] = [
    Row(
        "augmentation/semaug",
        "pasted objects of a public bank raise a detector's mAP by at least 2 points where objects are rare",
        _FITTING,
        Side("fedavg", _RATES, _DETECTOR),
        _SCENES,
        metric="map",
        by=0.02,
        quick=True,
    ),
    Row(
        "augmentation/semaug-where",
        "objects that fit raise mAP more than objects of any class at any place, from the same bank",
        _FITTING,
        Side("semaug", _RATES, _DETECTOR | _ANY, name="semaug anywhere"),
        _SCENES,
        metric="map",
        margin=0.01,
    ),
    Row(
        "augmentation/semaug-impossible",
        "after objects that fit, a detector finds fewer of the classes that a scene cannot have than after objects of any class anywhere",
        Side("semaug", {}, _DETECTOR | {"bank": "public", "top": 1, "lr": 0.01}),
        Side("semaug", {}, _DETECTOR | _ANY | {"lr": 0.01}, name="semaug anywhere"),
        _SCENES,
        impossible_pairs,
        better="lower",
        trials=1,
        seeds=FRESH,
        note="Five seeds left it undecided. After objects of any class some detectors are sure of nothing, and so of nothing false",
    ),
    Row(
        "augmentation/madaug",
        "with 40 pictures for each client, MADAug is at least 2 points more accurate than plain training on turned and shifted pictures",
        _MADAUG,
        _fixed("without augmentation", scale=1e9),
        _FEW,
        by=0.02,
        made=_moved,
        seeds=FRESH,
    ),
    Row(
        "augmentation/madaug-policy",
        "a learnt policy is no less accurate than one that is not trained, with operations that change the class among the choices",
        _MADAUG,
        _fixed("random policy"),
        _FEW,
        at_least=True,
        margin=0.01,
        made=_moved,
        seeds=FRESH,
        note="On 40 pictures for each client four are held out for the policy, which the random one trains on too",
    ),
    Row(
        "augmentation/madaug-central",
        "on five clients MADAug is at most 2 points less accurate than on all their pictures at one",
        _MADAUG,
        dataclasses.replace(_MADAUG, config={"clients": 1, "cohort": 1}, name="madaug on one client"),
        _FEW,
        at_least=True,
        margin=0.02,
        made=_moved,
        seeds=FRESH,
    ),
    Row(
        "augmentation/madaug-curriculum",
        "augmenting ever more pictures of a batch is more accurate than all of them from the start",
        _MADAUG,
        Side("madaug", _LEARNING, _MADAUG.options | {"scale": 0.0}, name="madaug without a curriculum"),
        _FEW,
        made=_moved,
        seeds=FRESH,
    ),
    Row(
        "augmentation/madaug-invert",
        "the policy learns to prefer rotation, which test pictures have, to inversion, which they do not",
        _MADAUG,
        0.0,
        _FEW,
        preference,
        criterion="accuracy",
        margin=0.0,
        made=_moved,
        seeds=FRESH,
    ),
]
