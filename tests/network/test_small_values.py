"""Small values, numbers and weights through every kind of sum: in this process, under real masks, and over the network."""

import pytest

from paceline.core.method import on_client
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.run import prepare

RUN = {"clients": 5, "cohort": 5, "rounds": 1, "partition": "quantity:0.5", "options": {"server_lr": 1e6}}
SECURE = {"max_weight": 1000, "bits": 20, "threshold": 3, "gamma": 0.0}
seen: dict[str, list] = {}


@on_client(bounds={"delta": 2e-6, "weight": 2e-10})
def small(self, client, message):
    """Return 1e-8 and 1e-11 per sample, weighted by 1e-12 per sample."""
    n = client.num_samples
    seen["sizes"].append(n)
    return Update(delta=message.zeros() + 1e-8 * n, loss=1e-11 * n, weight=1e-12 * n)


@pytest.fixture
def method(monkeypatch):
    small.__name__ = "train"
    monkeypatch.setattr(FedAvg, "train", small)
    real = FedAvg.round

    def spy(self, fed, state):
        mean = fed.mean(self.train, state.params, over=fed.sample())
        seen["mean"] = [float(mean.delta.vector.mean()), mean.loss, mean.weight]
        fed.start_round(fed.round)  # the streams of the first call again
        return real(self, fed, state)

    monkeypatch.setattr(FedAvg, "round", spy)
    seen.update(sizes=[], mean=[])


@pytest.mark.parametrize(("aggregation", "within"), [("plain", 1e-6), ("secure-arithmetic", 2e-3)])
@pytest.mark.parametrize("vectorize", ["off", "on"])
def test_a_mean_of_small_values_with_small_weights(config, task, method, aggregation, within, vectorize):
    run = prepare(config(**RUN, aggregation=aggregation, secure=SECURE if within > 1e-6 else {}, vectorize=vectorize), task=task)
    run.step()
    sizes = seen["sizes"][:5]
    mean = sum(n * n for n in sizes) / sum(sizes)
    assert len(set(sizes)) > 1
    assert seen["mean"] == [pytest.approx(expected, rel=within) for expected in (1e-8 * mean, 1e-11 * mean, 1e-12 * sum(sizes))]
    run.close()


@pytest.mark.parametrize("aggregation", ["plain", "secure"])
def test_the_same_bits_under_masks_and_over_the_network(networked, federate, monkeypatch, aggregation):
    small.__name__ = "train"
    monkeypatch.setattr(FedAvg, "train", small)
    seen.update(sizes=[])
    run = {**RUN, "aggregation": aggregation, "secure": SECURE if aggregation == "secure" else {}}
    there, here = networked(run), federate(vectorize="off", **run)
    assert there.model_sha256 == here.model_sha256
    if aggregation == "secure":
        arithmetic = federate(vectorize="off", **{**run, "aggregation": "secure-arithmetic"})
        assert arithmetic.model_sha256 == here.model_sha256
