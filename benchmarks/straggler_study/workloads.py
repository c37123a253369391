"""What is compared: workloads, rules of selection, and the run of one rule on one workload."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

__all__ = ["FRACTIONS", "LONGEST", "RULES", "SEARCH_SEED", "WHOLE", "WORKLOADS", "Asked", "Workload", "fractions"]

_COMMON: dict[str, Any] = {"clients": 20, "cohort": 20, "eval_every": 2}


def _slow(compute: float) -> str:
    return f"stragglers:slow=4,up=5e7,compute={compute:g}"


_LETTERS = _COMMON | {
    "task": "fontwriters",
    "model": "femnist_cnn",
    "partition": "dirichlet:0.3",
    "client_samples": 100,
    "rounds": 60,
    "eval_every": 5,
    "fleet": _slow(1e9),
}
_PLAYS = _COMMON | {
    "task": "shakespeare",
    "model": "lstm",
    "task_options": {"hidden": 64, "layers": 1},
    "client_samples": 400,
    "rounds": 20,
    "eval_every": 2,
    "fleet": _slow(1e9),
}
_PICTURES = _COMMON | {
    "task": "cifar10-test-split",
    "model": "vgg9",
    "partition": "dirichlet:0.3",
    "client_samples": 100,
    "rounds": 30,
    "eval_every": 5,
    "fleet": _slow(2e9),
}
_DIGITS = _COMMON | {
    "task": "mnist-5k",
    "model": "mlp",
    "task_options": {"hidden": [64, 64]},
    "partition": "dirichlet:0.3",
    "client_samples": 200,
    "rounds": 30,
    "fleet": _slow(6e7),
}


@dataclass(frozen=True)
class Workload:
    """A task on a fleet, with the learning rates of the search and the local training; `judged` test samples, all of them if 0."""

    config: dict[str, Any]
    rates: tuple[float, ...]
    local: dict[str, Any]
    judged: int = 0


WORKLOADS: dict[str, Workload] = {
    "digits": Workload(_DIGITS, (0.05, 0.1, 0.2), {"batch_size": 20}),
    "skewed-digits": Workload(_DIGITS | {"partition": "groups:0-7/0-7/0-7/0-7/8-9"}, (0.05, 0.1, 0.2), {"batch_size": 20}),
    "letters": Workload(_LETTERS, (0.05, 0.1, 0.2), {"batch_size": 10}),
    "skewed-letters": Workload(_LETTERS | {"partition": "groups:0-49/0-49/0-49/0-49/50-61"}, (0.05, 0.1, 0.2), {"batch_size": 10}),
    "plays": Workload(_PLAYS, (1.0, 2.0, 4.0), {"batch_size": 10}, judged=2000),
    "pictures": Workload(_PICTURES, (0.005, 0.01, 0.02), {"batch_size": 20}),
    "crowd": Workload(
        _DIGITS
        | {
            "clients": 100,
            "cohort": 100,
            "client_samples": 40,
            "fleet": "stragglers:slow=20,up=5e7,compute=1.2e7,churn=0.1",
        },
        (0.05, 0.1, 0.2),
        {"batch_size": 20},
    ),
    "skewed-pictures": Workload(_PICTURES | {"partition": "groups:0-7/0-7/0-7/0-7/8-9"}, (0.005, 0.01, 0.02), {"batch_size": 20}),
}

RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("fedavg", {}),
    "drop": ("dropstragglers", {}),
    "random": ("randomdropout", {}),
    "random-unbiased": ("randomdropout", {"merge": "unbiased"}),
    "random-stale": ("randomdropout", {"merge": "stale"}),
    "random-segmented": ("randomdropout", {"segmented": True}),
    "ordered": ("fjord", {}),
    "heterofl": ("heterofl", {}),
    "fluid": ("fluid", {}),
    "saliency": ("saliency", {}),
    **{
        f"clip-{score}-{reduce}": ("clip", {"score": score, "reduce": reduce})
        for score in ("local", "public", "mixed")
        for reduce in ("max", "mean", "l2")
    },
    "clip-segmented": ("clip", {"segmented": True}),
}
FRACTIONS = (0.5, 0.75)
SEARCH_SEED = 1000
WHOLE = ("none", "drop")
"""Rules without a fraction."""
LONGEST = 4
"""At most as many times the workload's rounds."""


@dataclass(frozen=True)
class Asked:
    """One run: of the workload's rounds, or of `times` as many."""

    workload: str
    rule: str
    p: float
    rate: float
    seed: int
    times: int = 1

    def config(self) -> dict[str, Any]:
        """Return the run's configuration."""
        load = WORKLOADS[self.workload]
        method, options = RULES[self.rule]
        options = {**load.local, **options, "lr": self.rate} | ({} if self.rule in WHOLE else {"smallest": self.p})
        rounds = load.config["rounds"] * self.times
        return {**load.config, "rounds": rounds, "vectorize": "off", "method": method, "options": options, "seed": self.seed}

    @property
    def key(self) -> str:
        """Return what identifies the run in the book: all of its configuration, and how many samples judge it if not all do."""
        judged = WORKLOADS[self.workload].judged
        return json.dumps(self.config() | ({"judged": judged} if judged else {}), sort_keys=True)

    def prepare(self) -> Any:
        """Prepare the run, on a part of the test set if the workload asks for it."""
        from paceline.run import RunConfig, prepare
        from paceline.tasks.load import load_task

        config, judged = RunConfig.build(self.config()), WORKLOADS[self.workload].judged
        if not judged:
            return prepare(config)
        task = load_task(config.task, config.model, config.seed, **config.task_options)
        index = torch.linspace(0, len(task.test) - 1, judged).round().long()  # evenly, as samples of one text follow each other
        return prepare(config, task=replace(task, test=task.test.subset(index)))


def fractions(rule: str, wanted: Sequence[float]) -> Sequence[float]:
    """Return the fractions that a rule is run with."""
    return wanted[:1] if rule in WHOLE else wanted
