"""FedBABU against a plain loop in PyTorch: the body learns, the head stays, and clients fine-tune what they are asked to."""

from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paceline.core.errors import PlanError
from paceline.engines.worker import Worker
from paceline.results.model import personal_module
from paceline.run import RunConfig, prepare
from paceline.tasks import Arrays, Task

from ..quadratics import by_size

LR = 0.2


def net(norm=False):
    return nn.Sequential(nn.Linear(4, 5), *[nn.BatchNorm1d(5)] * norm, nn.Tanh(), nn.Linear(5, 3))


def played(sizes, make=net, **options):
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(sum(sizes), 4, generator=generator), torch.arange(sum(sizes)) % 3
    task = Task("net", Arrays(x, y), Arrays(x, y), make, 3, lr=LR, batch_size=50)
    values = {"method": "fedbabu", "options": options, "task": "net", "clients": 2, "cohort": 2, "rounds": 3, "vectorize": "off"}
    run = prepare(RunConfig.build(values), task=task, split=by_size(sizes))
    first = make()
    first.load_state_dict(dict(run.fed.init_params().items()), strict=False)
    run.go()
    return run, first, list(zip(x.split(sizes), y.split(sizes), strict=True))


def descended(module, x, y, epochs, moving, **sgd):
    """Return a copy after steps of the parameters in `moving`: modules by number."""
    module = deepcopy(module).train()
    optimizer = torch.optim.SGD([p for name, p in module.named_parameters() if int(name[0]) in moving], LR, **sgd)
    for _ in range(epochs):
        module.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
    return module


def agree(found, module):
    for name, value in module.state_dict().items():
        if name in found and value.is_floating_point():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("norm", "sizes"), [(False, [6, 1]), (True, [6, 3])])
def test_rounds_and_fine_tuning_follow_the_formulas(norm, sizes):
    run, common, data = played(sizes, partial(net, norm), epochs=2, momentum=0.5, weight_decay=0.1)
    head, sgd = len(common) - 1, {"momentum": 0.5, "weight_decay": 0.1}
    begun = deepcopy(common.state_dict())
    for _ in range(3):
        ends = [descended(common, x, y, 2, range(head), **sgd).state_dict() for x, y in data]
        common.load_state_dict({k: sum(n * end[k] for n, end in zip(sizes, ends, strict=True)) / sum(sizes) for k in ends[0]})
    agree(run.state.params, common)
    for part in ("weight", "bias"):
        assert torch.equal(run.state.params[f"{head}.{part}"], begun[f"{head}.{part}"])
    for client, (x, y) in enumerate(data):
        agree(personal_module(run, client).state_dict(), descended(common, x, y, 5, range(head + 1), **sgd))


@pytest.mark.parametrize(("finetune", "moving"), [("head", {2}), ("body", {0})])
def test_a_part_is_fine_tuned(finetune, moving):
    run, common, data = played([6, 1], finetune=finetune, tune_epochs=2)
    common.load_state_dict(dict(run.state.params.items()))
    for client, (x, y) in enumerate(data):
        personal = personal_module(run, client).state_dict()
        agree(personal, descended(common, x, y, 2, moving))
        assert {int(k[0]) for k, v in personal.items() if not torch.equal(v, run.state.params[k])} == moving


def test_the_head_is_neither_sent_nor_received(monkeypatch):
    invoke, seen = Worker.invoke, []

    def spy(self, me, function, message):
        reply = invoke(self, me, function, message)
        seen.extend([set(message), set(reply.fields["delta"])] if function == "train" else [])
        return reply

    monkeypatch.setattr(Worker, "invoke", spy)
    run, _, _ = played([6, 1])
    assert len(seen) == 12
    assert all(names == {"0.weight", "0.bias"} for names in seen)
    assert not any(run.store[client].keys() - {"_buffers"} for client in range(2) if client in run.store)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(PlanError, match="cannot be split into features and head"):
        played([6, 1], lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh()))
