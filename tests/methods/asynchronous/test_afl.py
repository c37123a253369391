"""AFA-CD and AFA-CS: the worked numbers, what stays with the clients, and which bias each of them removes."""

import numpy as np
import pytest
import torch

from paceline.core.errors import PlanError
from paceline.methods.asynchronous.afacstable import AfaCsTable
from paceline.methods.asynchronous.afl import AfaCd, AfaCs
from paceline.run import RunConfig, prepare
from paceline.tasks import blobs
from paceline.tasks.sequence import split_classes
from tests.methods.asynchronous.conftest import quadratics

TWO = {"optima": [0.0, 2.0], "curvatures": [1.0, 3.0], "start": 1.0}  # gradients x and 3 (x - 2)
SILOS = [f"{__name__}:Silo", f"{__name__}:Table"]


class Effort:
    """Client 0 takes two steps in its first job; everybody takes one in all others."""

    def effort(self, client):
        return 2 if (client.id, client.round) == (0, 1) else 1


class Device(Effort, AfaCd):
    pass


class Silo(Effort, AfaCs):
    pass


class Table(Effort, AfaCsTable):
    pass


def test_a_step_along_the_mean_of_the_returns(play):
    """x1 = 1 + 0.1 * 1.025."""
    ((x1, _, _),) = play(quadratics(**TWO), f"{__name__}:Device", 1, 2, options={"lr": 0.1, "server_lr": 0.1, "returns": 2})
    assert x1 == pytest.approx(1.1025, abs=1e-6)


def test_two_steps_are_rescaled_to_one(play):
    ((_, state, fed),) = play(quadratics(**TWO), f"{__name__}:Silo", 1, 2, options={"lr": 0.1, "server_lr": 0.1})
    sent = {c: float(fed.engine.memories[c]["last"].vector[0]) for c in (0, 1)}
    assert sent == pytest.approx({0: 0.95, 1: -3.0}, abs=1e-6)
    assert float(state.mean.vector[0]) == pytest.approx(-1.025, abs=1e-6)


@pytest.mark.parametrize("method", SILOS)
def test_afa_cs_keeps_what_the_absent_returned_last(play, method):
    """Both return on x0; then client 0 alone, on x1, with one step. The others' last gradient goes on counting."""
    task = quadratics(**TWO)
    config = {"fleet": "homogeneous", "options": {"lr": 0.1, "server_lr": 0.1, "returns": 1}}
    steps = list(play(task, method, 2, 2, **config))
    assert steps[0][0] == pytest.approx(1.1025, abs=1e-6)
    assert steps[1][0] == pytest.approx(1.197375, abs=1e-6)
    state = steps[1][1]
    if method.endswith("Silo"):
        assert float(state.mean.vector[0]) == pytest.approx(-0.94875, abs=1e-6)
    else:
        assert {c: float(y.vector[0]) for c, (_, y) in state.table.items()} == pytest.approx({0: 1.1025, 1: -3.0}, abs=1e-6)


def test_afa_cd_with_one_return(play):
    """From x1 = 1.1025, where client 0's one step returns 1.1025: x2 = 0.99225."""
    task = quadratics(**{**TWO, "start": 1.1025})
    ((x, _, _),) = play(task, f"{__name__}:One", 1, 2, fleet="homogeneous", options={"lr": 0.1, "server_lr": 0.1, "returns": 1})
    assert x == pytest.approx(0.99225, abs=1e-6)


class One(AfaCd):
    def effort(self, client):
        return 1


@pytest.mark.parametrize("aggregation", ["plain", "secure-arithmetic"])
def test_without_staleness_all_are_fedavg(task, config, aggregation):
    """Same K and server_lr = K lr: CD is FedAvg with uniform weights, and CS with everybody is CD."""

    def models(method, options):
        made = config(method=method, clients=6, cohort=6, fleet="spread:percent=0", options=options, aggregation=aggregation)
        prepared = prepare(made, task=task)
        state, out = prepared.method.init(prepared.fed), []
        for number in range(1, 5):
            prepared.fed.start_round(number)
            state = prepared.method.round(prepared.fed, state)
            prepared.fed.engine.commit()
            out.append(state.params.vector.clone())
        return torch.stack(out)

    fedavg = models("fedavg", {"lr": 0.05, "epochs": 1})
    anarchic = {"lr": 0.05, "server_lr": 0.2, "least_steps": 4, "most_steps": 4}
    device = models("afacd", anarchic)
    close = {"atol": 1e-6 if aggregation == "plain" else 2e-3, "rtol": 0.0}  # float32; or 16 bits of a gradient up to 4
    torch.testing.assert_close(device, fedavg, **close)
    torch.testing.assert_close(models("afacs", anarchic), device, **close)
    torch.testing.assert_close(models("afacd", anarchic | {"server_lr": None}), device, **close)
    if aggregation == "plain":
        torch.testing.assert_close(models("afacstable", anarchic), device, **close)


@pytest.mark.parametrize("steps", [1, 7])
def test_effort_does_not_scale_what_a_client_returns(play, steps):
    """Where the gradient is constant (a linear loss), K changes nothing."""
    import dataclasses

    task = dataclasses.replace(quadratics([3.0, 5.0]), loss=lambda out, y: (out * y).mean())
    ((x, _, _),) = play(task, "afacd", 1, 2, options={"lr": 0.1, "server_lr": 1.0, "least_steps": steps, "most_steps": steps})
    assert x == pytest.approx(-4.0, abs=1e-5)


def test_steps_are_the_clients_choice_and_differ(task, config):
    prepared = prepare(config(method="afacd", clients=6, cohort=6, options={"most_steps": 5}), task=task)
    seen, real = [], type(prepared.method).effort

    class Spy(AfaCd):
        def effort(self, client):
            seen.append(real(self, client))
            return seen[-1]

    prepared.fed.engine.here.setup.programs["method"] = Spy(most_steps=5)
    state = prepared.method.init(prepared.fed)
    for number in range(1, 11):
        prepared.fed.start_round(number)
        state = prepared.method.round(prepared.fed, state)
    assert len(seen) == 60
    assert set(seen) == {1, 2, 3, 4, 5}


def test_clients_pause_and_the_skewed_come_more_often(play):
    task, counts, clocks = quadratics(np.zeros(6)), np.zeros(6), []
    options = {"returns": 1, "idle": 3.0, "skew": 3.0}
    before = None
    for _, state, fed in play(task, "afacd", 120, 6, fleet="spread:percent=0,slowest=0.1", options=options):
        if before is not None:
            counts[[c for c in range(6) if c in before and c not in {j.client for j in state.queue.jobs}]] += 1
        before = {j.client for j in state.queue.jobs}
        clocks.append(fed.clock.now)
    assert clocks == sorted(clocks)
    assert counts[5] > 3 * counts[0]


def test_an_empty_range_of_steps_is_refused(task, config):
    with pytest.raises(PlanError, match="least_steps=4, most_steps=3"):
        prepare(config(method="afacd", options={"least_steps": 4, "most_steps": 3}), task=task)


def test_the_table_forgets_those_who_stay_away(play):
    """Client 1 vanishes after its first return: with `expire` the model forgets it, without it never does."""

    def end(**options):
        task = quadratics([0.0, 2.0], start=1.0)
        options = {"lr": 0.1, "server_lr": 0.1, "returns": 1, "most_steps": 1} | options
        drop = lambda r, c, f: c == 1 and r > 1  # noqa: E731
        *_, (x, state, _) = play(task, "afacstable", 80, 2, drop=drop, options=options)
        return x, sorted(state.table)

    assert end() == (pytest.approx(1.0, abs=1e-6), [0, 1]), "y_1 = -1 stays, so that y_0 = x = 1 balances it"
    x, table = end(expire=5)
    assert x == pytest.approx(0.0, abs=1e-2)
    assert table == [0]


# -- what is kept, and what is lost on the way --------------------------------------------------------
def mean_of_last(state, engine, clients):
    """Return the mean over all clients of the last gradient that counts, from the clients' own memories."""
    total = torch.zeros_like(state.mean.vector, dtype=torch.float64)
    for client in engine.memories:
        if "last" in engine.memories[client]:
            total += engine.memories[client]["last"].vector.double()
    return total / clients


def test_the_mean_stays_right_when_differences_are_lost_on_their_way(task, config):
    """Links vary, and a deadline cuts off replies that were computed and sent: the client cannot know."""
    made = config(
        method="afacs", clients=8, cohort=8, rounds=30, aggregation="secure-arithmetic", secure={"bits": 24, "gamma": 0.0},
        fleet="mobile:link=3e5,least=0.9,vary=1.0,compute=1e5", deadline=0.4, options={"returns": 6, "server_lr": 0.1},
    )  # fmt: skip
    prepared = prepare(made, task=task)
    state, late = prepared.method.init(prepared.fed), 0
    for number in range(1, 31):
        prepared.fed.start_round(number)
        state = prepared.method.round(prepared.fed, state)
        late += sum(why == "late" for why in prepared.fed.last.dropped.values())
        prepared.fed.engine.commit()
        expected = mean_of_last(state, prepared.fed.engine, 8)
        assert (state.mean.vector - expected).abs().max() < 1e-4
    assert late > 3
    assert expected.abs().max() > 0.01


def test_clients_whose_samples_are_over_keep_their_last_gradient_in_both_forms():
    """In the second stage clients 0 and 1 have no samples, and return nothing that would replace what they returned before."""
    means = {}
    for name in ("afacs", "afacstable"):
        task = split_classes(blobs(240), stages=2, rounds_each=3, heads=False)
        made = RunConfig(
            method=name, options={"returns": 2, "server_lr": 0.1}, clients=4, cohort=4, rounds=9, partition="groups:0-1/0-3"
        )
        run = prepare(made, task=task)
        while run.step():
            pass
        means[name] = run.state.mean if name == "afacs" else sum(entry[1] for entry in run.state.table.values()) / 4
        if name == "afacs":
            kept = sum(run.store[client]["last"] for client in range(4)) / 4
            torch.testing.assert_close(run.state.mean.vector, kept.vector, atol=1e-5, rtol=1e-5)
        run.close()
    torch.testing.assert_close(means["afacs"].vector, means["afacstable"].vector, atol=1e-5, rtol=1e-5)


# -- which bias each of them removes -------------------------------------------------------------------
OPTIMA = np.linspace(-1.5, 1.5, 20)


class Correlated:
    """Clients with a higher optimum do more steps."""

    def effort(self, client):
        return 1 + client.id * 9 // 19


class Normal(Correlated, AfaCd):
    pass


class Unnormalised(Correlated, AfaCd):
    def train(self, client, message):
        own = super().train(client, message)
        return {**own, "gradient": (own["way"] / self.lr / 5.5) * own["gradient"]}

    train.__client__ = AfaCd.train.__client__


class Historic(Correlated, AfaCs):
    pass


def distance(play, name, seed, rounds=90, **options):
    """Return the mean distance of the last half of the steps to the optimum of the mean, with m = 5 of 20."""
    task = quadratics(OPTIMA, start=0.0, noise=0.2, samples=4, seed=seed)
    local = {"lr": 0.02, "server_lr": 0.1, "returns": 5, "batch_size": 1, "idle": 1.0}
    fleet = "spread:percent=0,slowest=0.2"
    steps = play(task, f"{__name__}:{name}", rounds, 20, seed=seed, fleet=fleet, options=local | options)
    return float(np.mean([abs(w) for w, _, _ in steps][rounds // 2 :]))


SEEDS = [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]


@pytest.mark.parametrize("seed", SEEDS)
def test_rescaling_removes_the_bias_of_effort(play, seed):
    assert distance(play, "Normal", seed) < 0.5 * distance(play, "Unnormalised", seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_only_the_history_removes_the_bias_of_arrivals(play, seed):
    device, silo = distance(play, "Normal", seed, skew=3.0), distance(play, "Historic", seed, skew=3.0)
    assert silo < 0.5 * device
