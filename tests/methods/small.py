"""Options with which every method runs in a fraction of a second; also those of `benchmarks/gpu.py`."""

SERVED = {"tune_epochs": 1, "tune_received": False, "map_epochs": 1, "weight_epochs": 1, "restarts": 0, "server_samples": 16}

SMALL = {
    "apfl": {"steps": 2},
    "clip": {"warmup": 1},
    "dropstragglers": {"warmup": 1},
    "fal": {"steps": 2, "attack_steps": 2},
    "fedbn": {"layers": ("0",)},
    "fedbuff": {"buffer": 3},
    "fedconv": SERVED | {"lr": 0.01, "epochs": 1, "batch_size": 20, "classes": (0, 1, 2)},
    "fedzo": {"steps": 2, "directions": 2},
    "fedlex": {"explore_epochs": 1, "epochs": 1, "batch_size": 20},
    "fedloge": {"epochs": 1, "batch_size": 10, "frame_steps": 20, "length": 1.0},
    "fedrep": {"head_epochs": 2},
    "fjord": {"warmup": 1},
    "fluid": {"warmup": 1},
    "fot": {"rounds_per_task": 2},
    "frl": {"batch_size": 20},
    "frlchecked": {"batch_size": 20},
    "fzoos": {"steps": 2, "features": 50, "candidates": 4, "active": 1, "survey_candidates": 4, "survey_active": 1, "initial": 2},
    "heterofl": {"warmup": 1},
    "madaug": {"batch_size": 10, "period": 2, "operations": ("rotate", "translate-x", "invert")},
    "perfedavg": {"steps": 2},
    "pfedme": {"inner_steps": 2},
    "pfedpg": {"tokens": 2, "epochs": 1, "batch_size": 20, "server_optimizer": "adam"},
    "pfedpgsum": {"tokens": 2, "epochs": 1, "batch_size": 20, "server_optimizer": "adam"},
    "randomdropout": {"warmup": 1},
    "saliency": {"warmup": 1, "every": 2},
}
"""Options that suit a small run."""
