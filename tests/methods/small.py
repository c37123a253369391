"""Options with which every method runs in a fraction of a second; also those of `benchmarks/gpu.py`."""

SERVED = {"tune_epochs": 1, "tune_received": False, "map_epochs": 1, "weight_epochs": 1, "restarts": 0, "server_samples": 16}

SMALL = {
    "apfl": {"steps": 2},
    "autoflip": {"explore_epochs": 1, "epochs": 1, "batch_size": 20},
    "clip": {"warmup": 1},
    "dropstragglers": {"warmup": 1},
    "fal": {"steps": 2, "attack_steps": 2},
    "fedbn": {"layers": ("0",)},
    "fedbuff": {"buffer": 3},
    "fedconv": SERVED | {"lr": 0.01, "epochs": 1, "batch_size": 20, "classes": (0, 1, 2)},
    "fedd2s": {"samples": 20, "epochs": 1, "period": 1, "least": 1},
    "fedd2ssum": {"epochs": 1, "period": 1, "least": 1},
    "fedzo": {"steps": 2, "directions": 2},
    "fedins": {"members": 4, "selected": 2, "epochs": 1},
    "fedka": {"steps": 4, "collect": 2, "vote_batches": 4},
    "fedlex": {"explore_epochs": 1, "epochs": 1, "batch_size": 20},
    "fedloge": {"epochs": 1, "batch_size": 10, "frame_steps": 20, "length": 1.0},
    "fedlgd": {"per_class": 3, "global_per_class": 2, "warm_up": 2, "refine": 1, "global_steps": 2, "image_lr": 0.1, "gap": 1},
    "fedrep": {"head_epochs": 2},
    "fjord": {"warmup": 1},
    "fluid": {"warmup": 1},
    "fot": {"rounds_per_task": 2},
    "fraug": {"steps": 2, "batch_size": 20},
    "franca": {"prototypes": 8, "hidden": 4, "bottleneck": 4, "crops": 1, "levels": 2, "steps": 2, "batch_size": 10},
    "frl": {"batch_size": 20},
    "frlchecked": {"batch_size": 20},
    "fzoos": {"steps": 2, "features": 50, "candidates": 4, "active": 1, "survey_candidates": 4, "survey_active": 1, "initial": 2},
    "heterofl": {"warmup": 1},
    "madaug": {"batch_size": 10, "period": 2, "operations": ("rotate", "translate-x", "invert")},
    "heterogeneityreport": {"every": 2, "clusters": 3, "iterations": 2},
    "perfedavg": {"steps": 2},
    "pfedme": {"inner_steps": 2},
    "pfedpg": {"tokens": 2, "epochs": 1, "batch_size": 20, "server_optimizer": "adam"},
    "pfedpgsum": {"tokens": 2, "epochs": 1, "batch_size": 20, "server_optimizer": "adam"},
    "randomdropout": {"warmup": 1, "merge": "stale"},
    "saliency": {"warmup": 1, "every": 2},
}
"""Options that suit a small run."""

LATE = {"clip", "dropstragglers", "fjord", "fluid", "fot", "fzoos", "heterofl", "randomdropout", "saliency"}
"""Methods that do in round 3, with these options, what they do not before."""
