"""The defaults of every method: those of its paper, or of its authors' code, as the method's sheet gives them.

A run without options is the published form, so a changed default is a changed method. Change the two together, and say so in the
changelog.
"""

from dataclasses import MISSING, fields

import pytest

from paceline.core.errors import ConfigError
from paceline.registry import find_method

from .test_every_method import NAMES

LOCAL = {"lr": None, "epochs": 1, "batch_size": None, "momentum": 0.0, "weight_decay": 0.0}
AVERAGED = LOCAL | {"server_lr": 1.0}
UNEQUAL = {"lr": None, "steps": 5, "epochs": None, "batch_size": 16, "server_lr": 1.0, "importance": "uniform"}
STALE = UNEQUAL | {"lr": 0.005, "epochs": 1, "batch_size": 128, "importance": "samples"}
MOMENTUM = {
    "beta": 0.1, "lr": None, "epochs": 1, "steps": None, "batch_size": None, "weight_decay": 0.0, "server_lr": None,
}  # fmt: skip
ANARCHIC = {
    "lr": None, "server_lr": None, "returns": 10, "least_steps": 1, "most_steps": 10, "batch_size": None, "idle": 0.0, "skew": 0.0,
}  # fmt: skip
ARRIVING = {
    "lr": None, "steps": 10, "batch_size": 64, "momentum": 0.9, "max_norm": 10000.0, "server_lr": 1.0, "period": 0.5,
    "unit": "slowest", "least": None, "staleness": None, "cap": None,
}  # fmt: skip
MARGIN = AVERAGED | {
    "lr": 0.01, "batch_size": 50, "momentum": 0.5, "weight_decay": 0.0005, "margin": 0.1, "per_sample": False,
}  # fmt: skip
PROMPTED = LOCAL | {
    "lr": 0.25, "epochs": 5, "batch_size": 64, "weight_decay": 0.001, "tokens": 10, "server_lr": 0.001, "server_optimizer": "sgd",
    "reduce": "sum", "heads": 1, "descriptor": "tokens", "per_step": False, "clip": 0.0, "judge": "tuned",
}  # fmt: skip
ROBUST = AVERAGED | {"byzantine": 0.2}
TRUSTED = LOCAL | {"lr": 0.001, "epochs": 3, "batch_size": 32, "optimizer": "adam", "most": None, "by_samples": False}
PRUNED = AVERAGED | {
    "straggler_share": 0.2, "network": True, "smallest": 0.5, "warmup": 2, "merge": None, "adaptive": False, "rescale": False,
    "segmented": False,
}  # fmt: skip
OWN = LOCAL | {"models": ()}
HEADS = OWN | {
    "momentum": 0.9, "weight_decay": 0.001, "clip": 50.0, "server_lr": 0.01, "freeze_absent": False, "batch_means": False,
    "judge": "own",
}  # fmt: skip
MIXED = OWN | {
    "lr": 0.06, "batch_size": 32, "clip": 0.0, "server_lr": 0.01, "judge": "own", "views": 1, "mix_over": "class_means", "subset": None,
    "least_classes": 1, "send_head": True, "halve_every": 0,
}  # fmt: skip
MUTUAL = OWN | {
    "lr": 0.01, "epochs": 2, "batch_size": 32, "momentum": 0.9, "distill": 1.0, "tap_weight": 0.5, "mutual": 1.0, "temperature": 2.0,
    "period": None, "planned": 100, "least": 2, "dropped": (), "fade": 0.9, "server_lr": 0.001, "server_epochs": 5,
    "server_batch_size": 64,
}  # fmt: skip
TUNED = AVERAGED | {
    "momentum": 0.9, "peft": "bias", "width": 8, "tokens": 10, "deep": True, "rank": 4, "alpha": 8.0, "dropout": 0.0,
    "targets": (), "with_head": None, "adam": False,
}  # fmt: skip
INSTRUCTED = TUNED | {
    "lr": 0.0003, "momentum": 0.0, "peft": "lora", "rank": 16, "alpha": 16.0, "adam": True, "decay": True, "monitor": False,
}  # fmt: skip
RANKS = {
    "lr": 0.4, "decay": 0.999, "epochs": 2, "batch_size": 8, "momentum": 0.9, "weight_decay": 0.0001, "keep": 0.5,
    "mask_on": "signed", "top": 1.0,
}  # fmt: skip

EXPLORED = LOCAL | {
    "lr": 0.0003, "epochs": 5, "batch_size": 350, "explore_epochs": 150, "patience": 150, "explorers": 1.0, "scale": "minmax",
    "optimizer": "adam", "lr_decay": 0.99, "server_momentum": 0.9,
}  # fmt: skip

DEFAULTS = {
    "afacd": ANARCHIC,
    "afacs": ANARCHIC,
    "afacstable": ANARCHIC | {"expire": None},
    "apfl": AVERAGED | {"alpha": 0.5, "adaptive": True, "steps": 10},
    "autoflip": EXPLORED
    | {
        "patience": 40, "prune": 0.3, "criterion": "displacement", "mask_update": "fixed", "floor": 0.05, "dead": 0.0,
        "protected": "last-bias", "every": 10, "gamma": 0.9, "regrow": 0.0,
    },
    "bulyan": ROBUST,
    "clip": PRUNED | {"score": "mixed", "reduce": "max", "select": "rank", "explore": 5, "back": 0.1, "step": 0.01},
    "ditto": AVERAGED | {"lam": 0.1, "personal_epochs": 1},
    "dropstragglers": AVERAGED | {"straggler_share": 0.2, "slack": 1.05, "warmup": 2},
    "fal": AVERAGED
    | {
        "steps": 10, "batch_size": 32, "adversary": "pgd", "radius": 0.1, "attack_steps": 7, "attack_size": None, "norm": "inf",
        "start": "random", "attack_on": "local", "clean": 0.0, "importance": "uniform", "judge": "clean",
    },
    "fedagain": TRUSTED
    | {
        "benchmark": "client", "benchmark_samples": 200, "error": "plain", "rule": "product", "alpha": 1.0, "beta": 1.0, "floor": False,
    },
    "fedagainsum": TRUSTED,
    "fedamd": {
        "anchor": 0.2, "period": 0, "steps": 10, "lr": 0.01, "batch_size": 64, "large_batch": 0, "server_lr": 1.0, "per_step": False,
    },
    "fedasync": ARRIVING | {"weigh": "mixing", "alpha": 0.6, "discount_by": "polynomial", "grace": 4, "rho": None},
    "fedau": UNEQUAL | {"cutoff": None, "weigh": "adaptive"},
    "fedavg": AVERAGED,
    "fedavgm": MOMENTUM,
    "fedavgmvr": MOMENTUM,
    "fedbabu": LOCAL | {"finetune": "all", "tune_epochs": 5},
    "fedbn": LOCAL | {"layers": ()},
    "fedbuff": ARRIVING | {"buffer": 10, "weigh": "identical"},
    "fedconv": LOCAL
    | {
        "lr": 0.001, "epochs": 5, "batch_size": 32, "shrink": 0.75, "classes": (0, 0, 1, 1, 1, 1, 2, 2, 2, 2), "server_samples": 200,
        "server_batch": 32, "map_epochs": 20, "map_lr": 0.001, "weight_epochs": 20, "weight_lr": 0.001, "weight_start": "ones",
        "activations": 2, "kernel_start": "mean", "restarts": 3, "optimizer": "adam", "form": "convolution", "tune_epochs": 10,
        "tune_lr": 0.0001, "tune_received": True,
    },
    "fedd2s": MUTUAL | {"knowledge": "samples", "samples": 256},
    "fedd2ssum": MUTUAL,
    "feddyn": AVERAGED | {"alpha": 0.01},
    "fedfix": ARRIVING,
    "fedgela": LOCAL
    | {
        "epochs": 10, "momentum": 0.9, "weight_decay": 0.0001, "temperature": 1.0, "power": 1.0, "feature_norm": "none",
        "energy": 1.0, "clip": 20.0, "stretched": True,
    },
    "fedgh": HEADS | {"shuffle": True},
    "fedghsum": HEADS | {"form": "gradient", "exchanges": 1},
    "fedins": LOCAL
    | {
        "lr": 0.01, "epochs": 10, "batch_size": 32, "members": 25, "selected": 3, "match": 0.1, "spread": 0.02, "mask_unused": False,
    },
    "fedit": INSTRUCTED,
    "fedka": LOCAL
    | {
        "lr": 0.0003, "batch_size": 16, "steps": 32, "horizon": 200, "slope": 5.0, "target": None, "align": "both", "voting": True,
        "share": "inputs", "collect": 8, "last_only": False, "vote_batches": 128, "agreement": 0.0,
    },
    "fedld": MARGIN | {"keep": 0.8, "renorm": "none"},
    "fedldsum": MARGIN,
    "fedlex": EXPLORED
    | {
        "guide": "auto", "base": "initial", "start_from": "base", "unit_mean": False, "most": 10.0, "apply_to": "gradient",
    },
    "fedlgd": LOCAL
    | {
        "lr": 0.01, "batch_size": 32, "per_class": 50, "global_per_class": 10, "start": "statistics", "warm_up": 10_000, "refine": 100,
        "global_steps": 500, "gap": 5, "updates": 10, "image_lr": 1.0, "image_momentum": 0.5, "strength": 10.0, "temperature": 0.07,
        "augment": True, "official_stats": False, "watch": False,
    },
    "fedloge": LOCAL
    | {
        "lr": 0.03, "epochs": 5, "batch_size": 8, "momentum": 0.5, "zeros": 0.6, "length": 0.1, "frame_steps": 10000, "frame_lr": 0.0001,
        "head_rate": 1.0, "scale": 1.7, "power": 1.0, "judge": "realigned", "tuning_epochs": 0,
    },
    "fednova": AVERAGED | {"mu": 0.0},
    "fedopt": AVERAGED | {"server_lr": 0.01, "optimizer": "adam", "beta1": None, "beta2": 0.99, "tau": 0.001},
    "fedpeft": TUNED,
    "fedper": LOCAL,
    "fedproto": OWN | {"strength": 1.0, "predict": "prototype"},
    "fedprox": AVERAGED | {"mu": 0.01},
    "fedre": MIXED | {"head_batch": 32, "server_epochs": 1},
    "fedresum": MIXED,
    "fedrep": LOCAL | {"head_epochs": 10},
    "fedsa": OWN
    | {
        "pull": 1.0, "contrast": 1.0, "calibration": 1.0, "beta": 0.9999, "begin": "projected", "weighted": False, "least": 1,
        "predict": "prototype",
    },
    "fedspeed": {
        "prox": 0.1, "radius": 0.1, "mix": 1.0, "dual_mean": "all", "lr": None, "lr_decay": 0.998, "epochs": 5, "steps": None,
        "batch_size": None, "weight_decay": 0.001, "clip": 10.0,
    },
    "fedstale": STALE | {"cutoff": None, "beta": 0.5, "rates": "estimated", "empty": "skip"},
    "fedstaletable": STALE | {"cutoff": None, "beta": 0.5, "rates": "estimated", "empty": "skip"},
    "fedvarp": UNEQUAL,
    "fedzo": {"lr": 0.01, "steps": 10, "directions": 20, "smoothing": 0.01, "correction": "none", "rho": 1.0},
    "finetuned": AVERAGED,
    "fjord": PRUNED | {"nested": False},
    "flag": ROBUST
    | {
        "server_lr": 0.2, "rank": 0, "pairs": 0.0, "iterations": 1, "begin": "random", "rescale": "none", "server_momentum": 0.9,
        "server_decay": 0.0005,
    },
    "fluid": AVERAGED | {"straggler_share": 0.2, "quorum": 0.75, "step": 0.2, "every": 2, "warmup": 3, "smallest": 0.5},
    "fot": AVERAGED
    | {
        "eps": 0.95, "eps_inc": 0.0, "rounds_per_task": None, "protect_head": None, "weigh": "uniform", "rho": "norm", "sketch": 5,
        "most_columns": 4096, "at_least_one": False, "last_cohort": None,
    },
    "fraug": LOCAL
    | {
        "lr": 0.01, "batch_size": 64, "momentum": 0.5, "steps": 20, "generator_lr": 0.05, "transform_lr": 0.05, "ramp": "exp",
        "gamma": 0.002, "horizon": 300, "interpolate": False, "ema": 0.3, "apart": 1.0, "near": 1.0, "generator_distance": "l2",
        "transform_distance": "mmd", "harden": "entropy", "noise": "uniform", "noise_size": None, "shared_statistics": False,
        "generator_norms": "shared",
    },
    "franca": {
        "lr": 0.0007, "epochs": 1, "steps": None, "batch_size": 64, "momentum": 0.994, "weight_decay": 0.04, "prototypes": 512, "levels": 5,
        "hidden": 256, "bottleneck": 64, "nest": "project", "balance": "sinkhorn", "crops": 8, "mirrored": True, "schedule_rounds": 100,
        "clip": 3.0, "teacher": "mean", "server_momentum": 0.99, "heads": "shared", "probe": True, "probe_dims": None, "rasa": 0,
        "rasa_ridge": 0.0,
    },
    "frl": RANKS,
    "frlchecked": RANKS,
    "fzoos": {
        "lr": 0.01, "steps": 10, "features": 10000, "length": None, "kernel": "rbf", "jitter": 1e-06, "ridge": 1e-05, "fitted": 150,
        "surveyed": 500, "candidates": 100, "active": 5, "survey_candidates": 200, "survey_active": 50, "initial": 10,
        "radius": 0.01, "correct": True,
    },
    "geometricmedian": ROBUST,
    "heterogeneityreport": AVERAGED | {"clusters": 10, "every": 10, "iterations": 5},
    "heterofl": PRUNED | {"rescale": True, "masked_loss": True, "own_rows": True, "importance": "uniform", "static": True},
    "krum": ROBUST,
    "localonly": OWN,
    "localtuning": INSTRUCTED,
    "madaug": AVERAGED
    | {
        "lr": 0.1, "batch_size": 128, "weight_decay": 0.0005, "scale": 40.0, "per_picture": 2, "temperature": 3.0, "spread": 0.3,
        "period": 3, "start": 0, "policy": "global", "policy_lr": 0.001, "policy_decay": 0.001, "layers": 0, "order": "second",
        "margin": 4, "mirror": True, "erase": 0.5, "smoothing": 0.1, "clip": 5.0,
        "operations": (
            "shear-x", "shear-y", "translate-x", "translate-y", "rotate", "auto-contrast", "invert", "equalize", "solarize",
            "posterize", "contrast", "color", "brightness", "sharpness", "cutout", "flip", "identity",
        ),
    },
    "meamed": ROBUST,
    "median": ROBUST,
    "mifa": UNEQUAL,
    "moon": AVERAGED | {"mu": 1.0, "temperature": 0.5},
    "multikrum": ROBUST,
    "ocfl": AVERAGED
    | {
        "epochs": 3, "backend": "average", "clusters": 3, "least": 3, "noise": "nearest", "order": 2.0, "patience": 1, "sketch": 0,
    },
    "perfedavg": AVERAGED | {"alpha": 0.01, "steps": 10, "order": "first", "delta": 0.001, "personal_steps": 1},
    "pfedme": AVERAGED | {"lr": 0.005, "lam": 15.0, "inner_steps": 5, "inner_lr": 0.05, "personal_epochs": 1},
    "pfedpg": PROMPTED,
    "pfedpgsum": PROMPTED,
    "phocas": ROBUST,
    "randomdropout": PRUNED,
    "saliency": PRUNED | {"every": 10},
    "scaffold": AVERAGED,
    "scaffoldm": MOMENTUM | {"start": "zeros"},
    "scaffoldmvr": MOMENTUM | {"start": "gradients"},
    "semaug": AVERAGED | {"share": 0.5, "bank": "local", "what": "first", "where": "last", "top": 3},
    "trimmedmean": ROBUST,
}  # fmt: skip


def defaults(cls):
    return {f.name: f.default if f.default is not MISSING else f.default_factory() for f in fields(cls)}


def same(got, wanted):
    """Also in the types: a rate of 1 is not a rate of 1.0, and False is not 0."""
    return got == wanted and all(type(got[name]) is type(wanted[name]) for name in wanted)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_without_options_is_the_published_one(name):
    assert same(defaults(find_method(name)), DEFAULTS[name])


DECLARED = {
    "records_times": (False, {True: "clip fjord heterofl randomdropout saliency"}),
    "vectorizable": (True, {False: "fedlgd fedzo fzoos"}),
    "names_clients": (False, {True: "fedamd fedasync fedbuff fedfix"}),
    "sends_model": (
        True,
        {
            False: "fedbabu fedbn fedd2s fedd2ssum fedgela fedgh fedghsum fedka fedper fedproto fedre fedrep fedresum fedsa franca "
            "fraug frl frlchecked localonly localtuning pfedpg pfedpgsum"
        },
    ),
    "has_model": (
        True,
        {
            False: "fedbn fedd2s fedd2ssum fedgh fedghsum fedper fedproto fedre fedrep fedresum fedsa fedzo fraug "
            "fzoos localonly ocfl pfedpg pfedpgsum"
        },
    ),
    "rounds_up": (False, {True: "heterofl"}),
    "needs": (
        None,
        {(2, 1): "flag geometricmedian meamed median phocas trimmedmean", (2, 3): "krum multikrum", (4, 3): "bulyan"},
    ),
}
"""What is usual, and which methods declare something else."""


@pytest.mark.parametrize("fact", DECLARED)
def test_what_methods_declare(fact):
    usual, others = DECLARED[fact]
    unusual = {name: value for value, names in others.items() for name in names.split()}
    assert {name: getattr(find_method(name), fact, usual) for name in NAMES} == dict.fromkeys(NAMES, usual) | unusual


@pytest.mark.parametrize("name", ["autoflip", "fedagain", "fedconv", "fedlex"])
def test_momentum_without_effect_is_refused(name):
    with pytest.raises(ConfigError, match=r"momentum=0\.9 is for SGD"):
        find_method(name)(momentum=0.9)
    assert find_method(name)(momentum=0.9, optimizer="sgd").local_optimizer().momentum == 0.9
    assert find_method("fedopt")(momentum=0.9, optimizer="adam").local_optimizer().momentum == 0.9
