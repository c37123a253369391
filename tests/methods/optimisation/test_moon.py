"""MOON against a plain loop in PyTorch, and FedAvg where the contrast has no weight."""

from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paceline.core.errors import PlanError
from paceline.run import RunConfig, prepare
from paceline.tasks import Arrays, Task

from ..quadratics import by_size

LR, MU, TAU = 0.2, 3.0, 0.4


def net(norm=False):
    return nn.Sequential(nn.Linear(4, 5), *[nn.BatchNorm1d(5)] * norm, nn.Tanh(), nn.Linear(5, 3))


def played(sizes, method="moon", make=net, rounds=3, **changes):
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(sum(sizes), 4, generator=generator), torch.arange(sum(sizes)) % 3
    task = Task("net", Arrays(x, y), Arrays(x, y), make, 3, lr=LR, batch_size=50)
    values = {"method": method, "task": "net", "clients": 2, "cohort": 2, "rounds": rounds, "vectorize": "off"}
    run = prepare(RunConfig.build(values | changes), task=task, split=by_size(sizes))
    first = run.fed.init_params().clone()
    return run, first, list(zip(x.split(sizes), y.split(sizes), strict=True)), run.go()


@pytest.mark.parametrize(("norm", "sizes"), [(False, [6, 1]), (True, [6, 3])])
def test_rounds_follow_the_formulas(norm, sizes):
    """Other networks are in evaluation mode, so with BatchNorm they use their own running statistics."""
    run, first, data, _ = played(sizes, make=partial(net, norm), options={"epochs": 2, "mu": MU, "temperature": TAU})
    common, last = net(norm), [None, None]
    common.load_state_dict(dict(first.items()), strict=False)
    for _ in range(3):
        ends = []
        for client, (x, y) in enumerate(data):
            local, near = deepcopy(common).train(), deepcopy(common).eval()
            far = last[client] or near
            optimizer = torch.optim.SGD(local.parameters(), LR)
            for _ in range(2):
                z = local[:-1](x)
                with torch.no_grad():
                    others = [other[:-1](x) for other in (near, far)]
                shown = torch.stack([(F.normalize(z) * F.normalize(other)).sum(1) for other in others], 1).div(TAU).exp()
                optimizer.zero_grad()
                (F.cross_entropy(local[-1](z), y) - MU * (shown[:, 0] / shown.sum(1)).log().mean()).backward()
                optimizer.step()
            last[client] = local.eval()
            ends.append(local.state_dict())
        common.load_state_dict({k: sum(n * end[k] for n, end in zip(sizes, ends, strict=True)) / sum(sizes) for k in ends[0]})
    for name, value in run.state.params.items():
        torch.testing.assert_close(value, common.state_dict()[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("vectorize", ["off", "on"])
def test_without_weight_it_is_fedavg(vectorize):
    shas = {
        m: played([6, 1], m, vectorize=vectorize, options=o)[3].model_sha256 for m, o in (("moon", {"mu": 0.0}), ("fedavg", {}))
    }
    assert len(set(shas.values())) == 1


def test_a_model_without_a_head_is_refused():
    with pytest.raises(PlanError, match="cannot be split into features and head"):
        played([6, 1], make=lambda: nn.Sequential(nn.Linear(4, 3), nn.Tanh()))
