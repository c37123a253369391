"""Options with which every method runs in a fraction of a second; also those of `benchmarks/gpu.py`."""

SMALL = {
    "apfl": {"steps": 2},
    "clip": {"warmup": 1},
    "dropstragglers": {"warmup": 1},
    "fal": {"steps": 2, "attack_steps": 2},
    "fedbn": {"layers": ("0",)},
    "fedbuff": {"buffer": 3},
    "fedzo": {"steps": 2, "directions": 2},
    "fedlex": {"explore_epochs": 1, "epochs": 1, "batch_size": 20},
    "fedrep": {"head_epochs": 2},
    "fjord": {"warmup": 1},
    "fluid": {"warmup": 1},
    "fot": {"rounds_per_task": 2},
    "franca": {"prototypes": 8, "hidden": 4, "bottleneck": 4, "crops": 1, "levels": 2, "steps": 2, "batch_size": 10},
    "frl": {"batch_size": 20},
    "frlchecked": {"batch_size": 20},
    "fzoos": {"steps": 2, "features": 50, "candidates": 4, "active": 1, "survey_candidates": 4, "survey_active": 1, "initial": 2},
    "heterofl": {"warmup": 1},
    "heterogeneityreport": {"every": 2, "clusters": 3, "iterations": 2},
    "perfedavg": {"steps": 2},
    "pfedme": {"inner_steps": 2},
    "randomdropout": {"warmup": 1},
    "saliency": {"warmup": 1, "every": 2},
}
"""Options that suit a small run."""
