"""What Byzantine clients send, against formulas; and that nobody else changes."""

import math

import numpy as np
import pytest
import torch

from paceline.adversaries.behaviours import little as alie_z
from paceline.adversaries.behaviours import load_adversary, members
from paceline.adversaries.engine import Hostile, poisoned
from paceline.core.engine import Call, Each
from paceline.core.errors import ConfigError, PlanError, UnknownNameError
from paceline.core.method import Method, on_client
from paceline.core.update import Update
from paceline.engines import LocalEngine, Setup
from paceline.registry import names
from paceline.run import prepare

G = torch.tensor([[1.0, 2.0, -1.0], [3.0, 0.0, 1.0], [2.0, 4.0, 0.0]])


def craft(spec, honest=G, cohort=10):
    return load_adversary(spec).craft(honest, cohort, lambda i: torch.Generator().manual_seed(i))


def test_independent_attacks():
    assert torch.equal(craft("signflip:0.2,scale=10"), -10 * G)
    assert torch.allclose(craft("gaussian:0.2,scale=3").norm(dim=1), 3 * G.norm(dim=1))
    drawn = craft("random:0.2,scale=5")
    assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 5
    assert not torch.equal(drawn[0], drawn[1])
    wide = torch.ones(1, 10_000)
    assert float((craft("drop:0.2", wide) == 0).float().mean()) == pytest.approx(0.1, abs=0.01)


def test_colluders_hide_in_their_own_spread():
    mean, std = G.numpy().mean(0), G.numpy().std(0)
    np.testing.assert_allclose(craft("alie:0.2,z=0.21").numpy(), np.tile(mean - 0.21 * std, (3, 1)), rtol=1e-6)
    np.testing.assert_allclose(craft("ipm:0.2").numpy(), np.tile(-0.1 * mean, (3, 1)), rtol=1e-6)
    assert alie_z(15, 3) == pytest.approx(0.2104, abs=1e-4)  # 7 of 12 honest workers: the published 0.21


def test_minmax_goes_as_far_as_the_colluders_spread():
    sent = craft("minmax:0.2").numpy()[0].astype(np.float64)
    g = G.numpy().astype(np.float64)
    far = max(np.linalg.norm(a - b) for a in g for b in g)
    assert max(np.linalg.norm(sent - a) for a in g) == pytest.approx(far, rel=1e-5)
    direction = sent - g.mean(0)
    cosine = direction @ -g.std(0) / (np.linalg.norm(direction) * np.linalg.norm(g.std(0)))
    assert cosine == pytest.approx(1.0)
    assert torch.equal(craft("minmax:0.2", G[:1]), G[:1])


def test_specifications_are_checked():
    with pytest.raises(UnknownNameError, match="signflip"):
        load_adversary("signflop:0.2")
    with pytest.raises(UnknownNameError, match="scale"):
        load_adversary("signflip:0.2,scael=3")
    for spec in ("signflip", "signflip:0", "signflip:1", "signflip:x", "alie:0.2,z", "alie:0.2,z=nan"):
        with pytest.raises(ConfigError):
            load_adversary(spec)
    assert len(members(0.2, 15, 3)) == 3
    assert members(0.2, 15, 3) == members(0.2, 15, 3) != members(0.2, 15, 4)


class Teller(Method):
    """Returns known numbers, by client."""

    @on_client
    def tell(self, client, message):
        return Update(delta=torch.full((4,), float(client.id + 1)), loss=2.0, weight=client.id + 1)

    @on_client(each=True)
    def count(self, client, message):
        return {"n": torch.tensor([client.id]), "figure": 0.5}


@pytest.fixture
def engine(task):
    class Fleet:
        def profile(self, client, round):
            from paceline.devices import Profile

            return Profile()

    rows = torch.arange(240).reshape(6, 40)
    setup = Setup({"method": Teller()}, task, lambda k: (rows[k], rows[k][:0]), 6, Fleet(), seed=5)
    return LocalEngine(setup)


def test_only_byzantine_replies_change(engine):
    call = Call("tell", None, range(6), 1, "s", Each())
    hostile = Hostile(engine, load_adversary("signflip:0.3"), {1, 4}, 5)
    replies = {r.client: r.value for r in hostile.run(call)}
    for client, reply in replies.items():
        assert reply.delta.tolist() == [(-1 if client in (1, 4) else 1) * (client + 1.0)] * 4
        assert (reply.weight, reply.loss) == (client + 1, 2.0)
    counts = {r.client: r.value for r in hostile.run(Call("count", None, range(6), 1, "s", Each()))}
    assert counts == {c: {"n": torch.tensor([c]), "figure": 0.5} for c in range(6)}


def test_crafted_replies_reach_the_sum(federate):
    """With lr 0 everybody's update is 0, so only noise moves the model; the others' weights stay."""
    still = federate(rounds=1, options={"lr": 0.0})
    assert federate(rounds=1, options={"lr": 0.0}, adversary="signflip:0.5").model_sha256 == still.model_sha256
    assert federate(rounds=1, options={"lr": 0.0}, adversary="random:0.5").model_sha256 != still.model_sha256


@pytest.mark.parametrize("name", sorted(names("adversary")))
def test_results_do_not_depend_on_the_workers(federate, name):
    plain = {"rounds": 2, "method": "frl" if name == "ranks" else "scaffold", "vectorize": "off"}
    common = {**plain, "adversary": f"{name}:0.4"}
    one = federate(**common)
    assert federate(workers=2, **common).model_sha256 == one.model_sha256
    assert federate(**plain).model_sha256 != one.model_sha256


def test_secure_sums_seal_replies_but_not_data(federate, config, task):
    with pytest.raises(PlanError, match="secure-arithmetic"):
        prepare(config(aggregation="secure", adversary="signflip:0.2"), task=task)
    assert federate(aggregation="secure-arithmetic", adversary="signflip:0.2").rounds == 3
    assert federate(aggregation="secure", adversary="labelflip:0.2", rounds=1).rounds == 1


def test_labels_are_flipped_for_byzantine_clients_alone(task):
    rows = torch.arange(240).reshape(6, 40)
    bad = poisoned(task, lambda k: (rows[k][:30], rows[k][30:]), load_adversary("labelflip:0.2"), {2})
    assert torch.equal(bad.train.y[rows[2][:30]], 3 - task.train.y[rows[2][:30]])
    changed = (bad.train.y != task.train.y).nonzero().flatten()
    assert set(changed.tolist()) <= set(rows[2][:30].tolist())
    assert torch.equal(bad.test.y, task.test.y)


def test_a_drop_out_among_the_byzantine_is_a_drop_out(federate):
    byzantine = sorted(members(0.5, 6, 0))
    out = federate(rounds=1, cohort=6, adversary="alie:0.5", drop=lambda r, c, f: c == byzantine[0])
    assert out.history[0]["dropped"] == 1
    assert math.isfinite(out.loss)


@pytest.mark.parametrize("method", ["median", "fedavg"])
def test_single_replies_of_stacked_clients_cross_between_processes(federate, method):
    common = {"rounds": 2, "method": method, "vectorize": "on", "chunk": 3, "adversary": "signflip:0.4", "cohort": 6}
    assert federate(workers=2, **common).model_sha256 == federate(**common).model_sha256
