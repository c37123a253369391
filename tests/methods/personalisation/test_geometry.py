"""What the features look like after training on digits: effects that no record of a run shows."""

import numpy as np
import pytest
import torch

from paceline.blocks.architectures import architectures
from paceline.models.split import features
from paceline.run import RunConfig, prepare

pytestmark = pytest.mark.slow


def carried_out(method, options, seed, **config):
    run = prepare(RunConfig.build({"method": method, "options": options, "task": "digits", "seed": seed, **config}))
    run.go()
    return run


def class_means(module, params, x, y, classes):
    module.eval()
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if name in params:
            value.data = params[name].clone()
    with torch.no_grad():
        f = features(module, x)
    return {c: torch.nn.functional.normalize(f[y == c].mean(0), dim=0) for c in classes if bool((y == c).any())}


def disagreement(run):
    """Mean cosine distance between two clients' means of one class."""
    by_class, zoo = {}, architectures(run.fed)
    for client in range(10):
        rows, models = run.fed.engine.setup.split(client)[0], run.method.models
        module = zoo.build(models[client % len(models)])
        means = class_means(module, run.store[client]["network"], run.task.train.x[rows], run.task.train.y[rows], range(10))
        for c, mean in means.items():
            by_class.setdefault(c, []).append(mean)
    pairs = [1 - float(a @ b) for means in by_class.values() for i, a in enumerate(means) for b in means[:i]]
    return float(np.mean(pairs))


def test_anchors_make_the_clients_agree_on_class_means():
    config = {"partition": "dirichlet:0.5", "client_samples": 40, "clients": 10, "cohort": 10, "rounds": 30, "eval_every": 30}
    local = {"models": ["mlp:hidden=64-32", "mlp:hidden=32", "mlp:hidden=48-40-32"], "lr": 0.05, "epochs": 2, "batch_size": 10}
    for seed in range(3):
        ours = disagreement(carried_out("fedsa", local | {"beta": 0.99}, seed, **config))
        assert ours < disagreement(carried_out("fedproto", local, seed, **config))


def test_the_stretched_frame_keeps_classes_apart():
    """Mean pairwise cosine of the global model's class means: nearer to -1/9 than FedAvg's."""
    config = {"task_options": {"hidden": [64, 32], "end": "batch"}, "partition": "shards:2", "clients": 20, "cohort": 6}
    local = {"lr": 0.05, "epochs": 5, "batch_size": 32, "momentum": 0.9, "weight_decay": 1e-4}
    far = []
    for method in ("fedgela", "fedavg"):
        values = []
        for seed in range(3):
            run = carried_out(method, local, seed, rounds=30, eval_every=30, **config)
            held, params = run.task.test, run.method.model(run.state)
            means = torch.stack(list(class_means(run.task.build(0), params, held.x, held.y, range(10)).values()))
            values.append(float((means @ means.T).fill_diagonal_(0).sum()) / 90)
        far.append(abs(np.mean(values) + 1 / 9))
    assert far[0] < far[1]
