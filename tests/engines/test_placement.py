"""Every method, loss, metric and model works on a GPU: on a pretended one, which finds tensors on the wrong device, and on a real one."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import paceline as pl
from paceline.assembly import load_metric
from paceline.core.client import Hooks
from paceline.core.columns import map_tree
from paceline.core.errors import PacelineError
from paceline.core.losses import LOSSES, NamedLoss
from paceline.core.method import on_client
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.metrics import ClassMetric
from paceline.models import build
from paceline.registry import names
from paceline.run import RunConfig, prepare
from paceline.tasks import load_task
from tests.conftest import make_task
from tests.core.test_losses import CASES
from tests.methods.forms import fitted
from tests.methods.small import LATE, SMALL
from tests.methods.test_every_method import NAMES, NEEDS_EACH
from tests.methods.test_vectorizable import MODELS
from tests.models.test_models import GIVEN, example
from tests.pretend import PretendCuda, pretended

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

ALONE, STACKED = {"vectorize": "off", "chunk": 1}, {"vectorize": "on", "chunk": 2}


def config(name="fedavg", **changes):
    rounds = 3 if name in LATE else 2
    values = {"method": name, "options": SMALL.get(name, {}), "task": "blobs", "clients": 4, "cohort": 4, "rounds": rounds}
    return RunConfig.build(values | {"fleet": "stragglers", "eval_every": rounds} | changes)


def carry_out(task, device="cpu", method="fedavg", **changes):
    return prepare(config(method, device=device, **changes), task=task).go()


def agrees(task, name="fedavg", **changes):
    """Assert that a run on a pretended GPU has the figures of one on the CPU, and no tensor on the wrong device."""
    wanted = carry_out(fitted(name, task()), method=name, **changes)
    with pretended():
        found = carry_out(fitted(name, task()), "cuda", name, **changes)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-3, abs=1e-4)
    assert found.bytes_up == wanted.bytes_up


def small():
    return make_task(48)


@pytest.mark.parametrize("name", NAMES)
def test_every_method_stacked(name):
    agrees(small, name, **STACKED, client_test=0.2, evaluation="clients")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_method_one_by_one(name):
    agrees(small, name, **ALONE)


@pytest.mark.parametrize("name", sorted({*LATE, "fedsa", "fedzo", "scaffold", "krum"} - {"fzoos"}))
def test_some_methods_one_by_one(name):
    agrees(small, name, **ALONE)


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", ["secure", "secure-arithmetic"])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEEDS_EACH])
def test_every_method_under_secure_aggregation(name, aggregation):
    agrees(small, name, **STACKED, aggregation=aggregation, secure={"gamma": 0.0})


@pytest.mark.parametrize("evaluation", ["federated", "clients", "clients-central"])
@pytest.mark.parametrize("aggregation", ["plain", "secure"])
def test_sums_and_evaluations(aggregation, evaluation):
    secure = {"secure": {"gamma": 0.0}} if aggregation == "secure" else {}
    agrees(small, **STACKED, aggregation=aggregation, evaluation=evaluation, client_test=0.2, **secure)


def test_adversaries():
    for name in ("signflip", "gaussian", "random", "drop", "alie", "ipm", "minmax", "labelflip"):
        agrees(small, adversary=f"{name}:0.34", **ALONE)


X = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 3


def normed():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


@pytest.mark.parametrize("buffers", ["average", "local", "recompute"])
def test_running_statistics(buffers):
    agrees(lambda: pl.Task.from_tensors(X, LABELS, normed, buffers=buffers), evaluation="clients", **STACKED)


@pytest.mark.parametrize("peft", ["adapter", "lora", "prompt"])
def test_tuning_of_a_frozen_model(peft):
    def digits():
        return load_task("digits", model="vit", dim=8, depth=1, heads=2, patch=4, mlp=2, limit=60)

    agrees(digits, "fedpeft", options={"peft": peft}, **STACKED)


# -- parts of a task ---------------------------------------------------------------------------
def there(tree):
    return map_tree(lambda tensor: tensor.to("cuda"), tree)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss(name):
    out, y, wanted = CASES[name]
    kept = (torch.arange(8) < 3)[:, None].expand(8, 5) if name == "dice" else torch.arange(8) < 3
    with pretended():
        assert torch.allclose(NamedLoss(name)(there(out), there(y)).cpu(), wanted)
        NamedLoss(name, ignore_index=3)(there(out), there(y))
        if name != "next_token":
            NamedLoss(name, mask="kept")(there(out), there({"y": y, "kept": kept}))


@pytest.mark.parametrize("name", sorted(set(names("model")) - {"vgg9", "resnet18", "mobilenet_v2", "unet", "cnn"}))
def test_small_models(name):
    with pretended():
        module = build(name, **GIVEN.get(name, {})).to("cuda")
        module(example(name).to("cuda")).sum().backward()
        assert all(p.grad is None or p.grad.is_cuda for p in module.parameters())


SCORES, CLASSES = torch.randn(8, 3, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 3
TOKENS = torch.arange(24).reshape(4, 6) % 5
BOXES = {"boxes": torch.tensor([[[0.0, 0, 2, 2], [1, 1, 3, 3]]]), "labels": torch.tensor([[0, 1]])}
VALUES = {
    **dict.fromkeys(["mae", "mape", "r2", "rmse"], (SCORES, SCORES + 0.1)),
    **dict.fromkeys(["exact-match", "hamming", "multilabel-f1"], (SCORES, (SCORES > 0).long())),
    **dict.fromkeys(["bleu", "rouge"], (TOKENS, TOKENS)),
    **dict.fromkeys(["dice", "iou"], (torch.randn(2, 3, 4, 4), torch.arange(32).reshape(2, 4, 4) % 3)),
    "concordance:horizon=2": (SCORES[:, :1], torch.stack([torch.arange(8) / 4, torch.arange(8) % 2], 1)),
    "detection-map:classes=2": ({**BOXES, "scores": torch.tensor([[0.9, 0.4]])}, BOXES),
}
"""Outputs and targets of metrics that do not judge scores of classes."""


def test_every_metric():
    named = {text.split(":")[0] for text in VALUES}
    for text in [*VALUES, *(name for name in names("metric") if name not in named)]:
        metric, (out, y) = load_metric(text), VALUES.get(text, (SCORES, CLASSES))
        wanted = metric.figures(metric.terms(out, y))
        with pretended():
            terms = metric.terms(there(out), there(y))
            assert metric.figures({k: v.cpu() for k, v in terms.items()}) == pytest.approx(wanted, nan_ok=True), text


# -- what is planted is found ------------------------------------------------------------------
@dataclass(frozen=True)
class Planted(FedAvg):
    """A method with a tensor on the CPU: in a hook, in what it computes from its memory, or in a number of its own for each client."""

    kind: str = "hook"

    @on_client
    def train(self, client, message):
        ones, share = torch.ones(len(message)), 1.0 + 0.1 * client.id
        hooks = {
            "hook": Hooks(correct=lambda grad, _: grad.map(lambda v: v * ones)),
            "objective": Hooks(objective=lambda module, x, y: F.cross_entropy(module(x), y, weight=torch.ones(4))),
            "number": Hooks(correct=lambda grad, _: grad * share),
        }
        local = client.sgd(message, hooks=hooks.get(self.kind), **self.local(client))
        if self.kind == "memory":
            client.memory["seen"] = client.memory.get("seen", torch.zeros(len(message))) + local.params.vector
        if self.kind == "noise":
            torch.randn(3, device=client.device, generator=client.rng)
        return Update(delta=local.params - message, weight=client.num_samples)


@pytest.mark.parametrize("train", [ALONE, STACKED], ids=["alone", "stacked"])
@pytest.mark.parametrize("kind", ["hook", "objective", "memory", "noise"])
def test_a_tensor_on_the_wrong_device_in_a_method_is_found(kind, train):
    with PretendCuda() as gpu, pytest.raises(PacelineError, match=r"same device|generator"):
        carry_out(small(), "cuda", f"{__name__}:Planted", options={"kind": kind}, **train)
    assert any("test_placement.py" in fault for fault in gpu.faults)
    carry_out(small(), "cpu", f"{__name__}:Planted", options={"kind": kind}, **train)


def test_a_number_of_each_client_is_stacked_on_the_device():
    agrees(small, f"{__name__}:Planted", options={"kind": "number"}, **ALONE)
    agrees(small, f"{__name__}:Planted", options={"kind": "number"}, **STACKED)


class Fixed(ClassMetric):
    """A metric with a constant on the CPU."""

    def count(self, scores, targets):
        return {"right": ((scores.argmax(1) == targets) * torch.ones(len(targets))).sum(), "count": torch.tensor(len(targets))}

    def figures(self, total):
        return {"fixed": float(total["right"]) / int(total["count"])}


def test_a_tensor_on_the_wrong_device_in_a_metric_or_a_loss_is_found():
    def weighted(out, y):
        return F.cross_entropy(out, y, weight=torch.ones(3))

    tasks = {
        "metric": lambda: pl.Task.from_tensors(X, LABELS, lambda: nn.Linear(6, 3), metrics=[Fixed()]),
        "loss": lambda: pl.Task.from_tensors(X, LABELS, lambda: nn.Linear(6, 3), loss=weighted),
    }
    for make in tasks.values():
        carry_out(make(), **STACKED)
        with PretendCuda() as gpu, pytest.raises((PacelineError, RuntimeError), match="same device"):
            carry_out(make(), "cuda", **STACKED)
        assert any("test_placement.py" in fault for fault in gpu.faults)


@pytest.mark.parametrize("model", ["batchnorm", "local statistics"])
def test_statistics_and_random_masks_of_stacked_clients_are_on_the_device(model):
    agrees(MODELS[model], "fedavg", **STACKED)


def test_the_rules_of_the_pretended_device():
    with PretendCuda(2) as gpu:
        a, b = torch.ones(3, device="cuda"), torch.ones(3)
        refused = [
            lambda: a + b,
            lambda: b.add_(a),
            lambda: torch.zeros(()).add_(a.sum()),
            lambda: torch.stack([a[0], b[0]]),
            lambda: b[torch.zeros(1, dtype=torch.int64, device="cuda")],
            lambda: a.index_select(0, torch.zeros(1, dtype=torch.int64)),
            lambda: a + torch.ones(3, device="cuda:1"),
            lambda: a.numpy(),
            lambda: torch.zeros(3, device="cuda:2"),
        ]
        for act in refused:
            with pytest.raises(RuntimeError):
                act()
        gpu.waits.clear()
        assert (a * torch.tensor(2.0)).is_cuda
        assert torch.where(a > 0, a, torch.tensor(0.0)).is_cuda
        assert torch.vmap(lambda v: v.sum() * 2)(torch.ones(2, 3, device="cuda")).device == torch.device("cuda:0")
        assert not gpu.waits
        assert a[torch.tensor([0])].is_cuda
        assert not a.cpu().is_cuda
        assert float(a.sum()) == 3.0
        assert len(gpu.waits) == 3
        leaf = a.clone().requires_grad_()
        (leaf * 2).sum().backward()
        assert leaf.grad.is_cuda
    assert torch.ones(1).device == torch.device("cpu")


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("train", [ALONE, STACKED], ids=["alone", "stacked"])
@pytest.mark.parametrize("name", NAMES)
def test_every_method_on_a_real_gpu(name, train):
    wanted, found = (carry_out(fitted(name, small()), device, name, **train) for device in ("cpu", "cuda"))
    assert found.loss == pytest.approx(wanted.loss, rel=1e-3, abs=1e-3)
