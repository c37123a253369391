"""FedFix, FedBuff and asynchronous FedAvg: weights, schedules, worked numbers, and what the weights are for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from paceline.core.client import Client
from paceline.core.errors import PlanError, ZeroCostError
from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.devices import Fleet, Profile
from paceline.devices.events import ClientJob, Queue, every, first, nanoseconds
from paceline.methods.asynchronous.fedasync import FedAsync
from paceline.methods.asynchronous.fedbuff import FedBuff
from paceline.methods.asynchronous.fedfix import FedFix
from paceline.run import prepare
from tests.conftest import make_task
from tests.methods import quadratics as elementwise
from tests.methods.asynchronous.conftest import quadratics

TAU = (1.0, 0.6, 0.2)
PLAIN = {"momentum": 0.0, "steps": 1, "batch_size": None}


def weights(method, tau=TAU):
    """Return d_i of all clients, as if all had arrived at once."""
    jobs = tuple(ClientJob(i, 0, 0, nanoseconds(t)) for i, t in enumerate(tau))
    factors = method.weights(Queue(fired=1), jobs, {})
    return [factor / len(tau) for factor in factors]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (FedFix(period=0.5), (2 / 3, 2 / 3, 1 / 3)),
        (FedFix(period=0.2), (5 / 3, 1, 1 / 3)),
        (FedFix(period=0.8), (2 / 3, 1 / 3, 1 / 3)),
        (FedFix(period=0.2, unit="seconds"), (5 / 3, 1, 1 / 3)),
        (FedAsync(weigh="unbiased"), (2.555556, 1.533333, 0.511111)),
        (FedAsync(), (0.6 / 3, 0.6 / 3, 0.6 / 3)),
        (FedAsync(weigh="identical"), (1, 1, 1)),
        (FedBuff(), (1 / 3, 1 / 3, 1 / 3)),
    ],
)
def test_weights(method, expected):
    assert weights(method) == pytest.approx(expected, abs=1e-6)


def test_the_period_is_in_units_of_the_slowest_client():
    assert weights(FedFix(period=0.5), [10 * t for t in TAU]) == weights(FedFix(period=0.5))
    assert weights(FedFix(period=0.5, unit="seconds"), [10 * t for t in TAU]) == pytest.approx((20 / 3, 12 / 3, 4 / 3))


def test_fedfix_on_three_quadratics(play):
    """x1 = 0.1333333, x2 = 0.4622222: each change is of the model that its client began on."""
    steps = play(quadratics([1, 2, 4]), "fedfix", 2, 3, options=PLAIN)
    assert [w for w, _, _ in steps] == pytest.approx([0.1333333, 0.4622222], abs=1e-6)


def first_one(now, back):
    return back[0][0], back[:1]


def first_two(now, back):
    return back[1][0], back[:2]


def oracle(optima, tau, rule, weigh, rounds, lr=0.1):
    """Replay the event loop on models only: who works on which, as in the paper's list of steps."""
    w, history, rho, back = 0.0, [], dict.fromkeys(range(len(tau)), 0), dict(enumerate(map(nanoseconds, tau)))
    models, counts, now = [0.0], dict.fromkeys(range(len(tau)), 0), 0
    for n in range(rounds):
        now, arrived = rule(now, sorted((t, i) for i, t in back.items()))
        for _, i in arrived:
            counts[i] += 1
        w = w + sum(weigh(i, counts[i], n + 1, n - rho[i]) * lr * (optima[i] - models[rho[i]]) for _, i in arrived)
        models.append(w)
        for _, i in arrived:
            rho[i], back[i] = n + 1, now + nanoseconds(tau[i])
        history.append(w)
    return history


@pytest.mark.parametrize(
    ("method", "options", "rule", "weigh"),
    [
        ("fedasync", {"weigh": "unbiased"}, first_one, lambda i, f, n, late: sum(1 / t for t in TAU) * TAU[i] / 3),
        ("fedasync", {"weigh": "identical"}, first_one, lambda i, f, n, late: 1.0),
        ("fedbuff", {"buffer": 2}, first_two, lambda i, f, n, late: 1 / 2 / (1 + late) ** 0.5),
        ("fedbuff", {"buffer": 2, "staleness": 0.0}, first_two, lambda i, f, n, late: 1 / 2),
        ("fedbuff", {"buffer": 2, "weigh": "unbiased"}, first_two, lambda i, f, n, late: n / f / 3),
        (
            "fedfix",
            {"period": 0.25, "unit": "seconds"},
            lambda now, back: (now + nanoseconds(0.25), [b for b in back if b[0] <= now + nanoseconds(0.25)]),
            lambda i, f, n, late: -(-nanoseconds(TAU[i]) // nanoseconds(0.25)) / 3,
        ),
    ],
)
def test_each_scheme_against_a_replay_of_the_event_loop(play, method, options, rule, weigh):
    optima = [1.0, 2.0, 4.0]
    steps = play(quadratics(optima), method, 25, 3, options=PLAIN | options)
    expected = oracle(optima, TAU, rule, weigh, 25)
    assert [w for w, _, _ in steps] == pytest.approx(expected, rel=2e-5, abs=2e-6)


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({}, lambda t: 0.6 * (t + 1) ** -0.5),
        ({"alpha": 0.9, "discount_by": "constant"}, lambda t: 0.9),
        ({"staleness": 1.0}, lambda t: 0.6 / (t + 1)),
        ({"discount_by": "hinge", "grace": 1}, lambda t: 0.6 if t <= 1 else 0.6 / (10 * (t - 1) + 1)),
    ],
)
def test_fedasync_mixes_models_as_published(play, options, share):
    """Client 2 is five times as fast as client 0, whose model arrives five or more versions late."""
    optima, rho, lr, seen = [1.0, 2.0, 4.0], 0.3, 0.1, set()
    local = PLAIN | {"steps": 2, "rho": rho, "server_lr": 7.0}  # the mixing weight is alpha alone
    steps = play(quadratics(optima), "fedasync", 25, 3, options=local | options)
    w, models, start, back = 0.0, [0.0], [0, 0, 0], [nanoseconds(t) for t in TAU]
    for n, (found, *_) in enumerate(steps):
        now, i = min((t, i) for i, t in enumerate(back))
        anchor = at = models[start[i]]
        for _ in range(2):
            at -= lr * (at - optima[i] + rho * (at - anchor))
        late = n - start[i]
        w = (1 - share(late)) * w + share(late) * at
        assert found == pytest.approx(w, rel=2e-5, abs=2e-6)
        models.append(w)
        start[i], back[i] = n + 1, now + nanoseconds(TAU[i])
        seen.add(late)
    assert {0, 1} < seen
    assert max(seen) >= 4


def test_published_fedasync_pulls_jobs_towards_the_model_that_they_start_from():
    layout = Layout.build([("w", (2,), "param")])
    start, at, grad = (Params(torch.tensor(values), layout) for values in ([1.0, 2.0], [3.0, 1.0], [0.5, 0.25]))
    for method, rho in ((FedAsync(), 0.005), (FedAsync(weigh="identical"), 0.0), (FedAsync(weigh="identical", rho=2.0), 2.0)):
        found = method.local_hooks(start).correct(grad, at).vector
        torch.testing.assert_close(found, grad.vector + rho * (at.vector - start.vector))


def test_a_run_follows_the_schedule_and_the_clock_shows_it(play, monkeypatch):
    seen, real = [], FedFix.weights

    def spy(self, queue, arrived, counts):
        seen.append((queue.now / 1e9, {job.client: job.version for job in arrived}))
        return real(self, queue, arrived, counts)

    monkeypatch.setattr(FedFix, "weights", spy)
    clocks = [fed.clock.now for _, _, fed in play(quadratics([1, 2, 4]), "fedfix", 4, 3)]
    assert seen == [(0.5, {2: 0}), (1.0, {0: 0, 1: 0, 2: 1}), (1.5, {2: 2}), (2.0, {0: 2, 1: 2, 2: 3})]
    assert clocks == pytest.approx([0.5, 1.0, 1.5, 2.0])


def test_an_empty_firing_leaves_the_model_and_goes_on(play):
    steps = list(play(quadratics([1, 2, 4]), "fedfix", 3, 3, options=PLAIN | {"period": 0.1}))
    assert [w for w, _, _ in steps] == [0.0, pytest.approx(0.1 * 4 * 2 / 3), pytest.approx(0.1 * 4 * 2 / 3)]
    assert [state.queue.fired for _, state, _ in steps] == [1, 2, 3]


def test_options_against_large_weights(play):
    """Client 0 (tau 1) arrives at the fifth firing of period 0.2, on version 0: d = 5, staleness 5."""

    def fifth(**options):
        *_, before, last = play(quadratics([1, 0, 0]), "fedfix", 5, 3, options=PLAIN | {"period": 0.2} | options)
        return (last[0] - before[0]) / (0.1 / 3)  # the others pull towards 0, where the model still is

    assert fifth() == pytest.approx(5.0, rel=1e-5)
    assert fifth(cap=2.0) == pytest.approx(2.0, rel=1e-5)
    assert fifth(staleness=0.5) == pytest.approx(5.0 * 5**-0.5, rel=1e-5)
    assert fifth(server_lr=0.3) == pytest.approx(1.5, rel=1e-5)


def test_with_equal_clients_all_schemes_are_synchronous_fedavg_bit_for_bit(task, config):
    def models(method, **options):
        made = config(method=method, clients=6, cohort=6, rounds=4, fleet="spread:percent=0", options=options)
        prepared = prepare(made, task=task)
        state, out = prepared.method.init(prepared.fed), []
        for number in range(1, 5):
            prepared.fed.start_round(number)
            state = prepared.method.round(prepared.fed, state)
            prepared.fed.engine.commit()
            out.append(state.params.sha256())
        return out

    local = {"steps": 2, "batch_size": 20, "momentum": 0.9, "max_norm": None}
    fixed = models("fedfix", period=1.0, **local)
    assert models("fedbuff", buffer=6, **local) == fixed
    assert models("fedbuff", buffer=6, weigh="unbiased", **local) == fixed
    assert models("fedavg", epochs=1, batch_size=20, momentum=0.9) == fixed
    assert models("fedbuff", buffer=5, **local) != fixed


@pytest.mark.parametrize("method", ["fedfix", "fedbuff", "fedasync"])
def test_learns_on_devices_of_any_speed(federate, method):
    common = {"clients": 8, "cohort": 8, "fleet": "stragglers:share=0.25,slow=4,compute=1e5"}
    options = {"lr": 0.02} | ({"buffer": 3} if method == "fedbuff" else {})
    summary = federate(method=method, rounds=40 if method == "fedasync" else 16, options=options, eval_every=8, **common)
    assert summary.accuracy > 0.8


def test_fewer_at_work_than_clients(federate):
    summary = federate(
        method="fedbuff", clients=12, cohort=6, rounds=14, fleet="mobile:compute=1e5", options={"buffer": 3, "lr": 0.02}
    )
    assert summary.accuracy > 0.8


def test_running_statistics_are_averaged_and_not_summed(play, config):
    from torch import nn

    from tests.conftest import make_task

    task = make_task(model=lambda: nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)))
    made = config(method="fedfix", clients=3, cohort=3, rounds=2, fleet="spread", options={"lr": 0.0, "momentum": 0.0, "steps": 60})
    prepared = prepare(made, task=task)
    state = prepared.method.init(prepared.fed)
    for number in (1, 2):
        prepared.fed.start_round(number)
        state = prepared.method.round(prepared.fed, state)
    x = task.train.x
    module = task.build(0)
    module.load_state_dict({**module.state_dict(), **{n: state.params[n] for n in state.params}})
    hidden = module[0](x)
    # 60 batches from one client's data each: close to the batch statistics, where a weight of d_i would give a multiple
    np.testing.assert_allclose(state.params["1.running_mean"], hidden.mean(0).detach(), atol=0.3)
    ratio = state.params["1.running_var"] / hidden.var(0).detach()
    assert 0.7 < float(ratio.min()) < float(ratio.max()) < 1.4


class Steady(Fleet):
    """Devices of eight speeds, also for clients without samples."""

    def profile(self, client, round):
        return Profile(latency=1.0 + 0.3 * client)


@pytest.mark.parametrize(
    ("method", "options", "aggregation"),
    [
        (FedFix, {}, "plain"),
        (FedFix, {"period": 0.3}, "secure-arithmetic"),
        (FedBuff, {"buffer": 3}, "plain"),
        (FedBuff, {"buffer": 3}, "secure-arithmetic"),
        (FedAsync, {"weigh": "identical"}, "plain"),
        (FedAsync, {}, "plain"),
    ],
)
def test_after_each_step_statistics_are_the_mean_of_the_arrivals_with_samples(config, monkeypatch, method, options, aggregation):
    """Published FedAsync mixes them like weights. Where no arrival has samples, the model stays."""
    last, arrived, counts = {}, [], []
    sgd, collect, step = Client.sgd, method.collect, method.step

    def trained(self, *args, **values):
        local = sgd(self, *args, **values)
        if self.num_samples:
            last[self.id] = local.params.vector.clone()
        return local

    def collected(self, fed, weights):
        arrived.append([last[client] for client in weights if client in last])
        counts.append(len(weights))
        return collect(self, fed, weights)

    def stepped(self, params, mean, clients):
        after, count = step(self, params, mean, clients), params.layout.num_params
        if not arrived[-1]:
            assert torch.equal(after.vector, params.vector)
        elif getattr(self, "weigh", "") != "mixing":
            wanted = torch.stack(arrived[-1]).mean(0)[count:]
            torch.testing.assert_close(after.vector[count:], wanted, atol=1e-4, rtol=1e-5)
        return after

    for name, function in {"collect": collected, "step": stepped}.items():
        monkeypatch.setattr(method, name, function)
    monkeypatch.setattr(Client, "sgd", trained)
    task = make_task(model=lambda: nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)))
    values = {
        "method": method.__name__.lower(),
        "options": options,
        "aggregation": aggregation,
        "secure": {"gamma": 0.0, "bits": 24},
    }
    made = config(**values, clients=8, cohort=8, rounds=12, fleet=f"{__name__}:Steady")
    prepare(made, task=task, split=elementwise.by_size([40, 12, 30, 0, 21, 45, 0, 33])).go()
    assert len({len(clients) for clients in arrived}) > 1
    assert min(counts) == {"fedasync": 1, "fedbuff": 3, "fedfix": 2 if aggregation == "plain" else 5}[values["method"]]


def test_hidden_replies_are_not_asked_in_ones_or_twos(task, config):
    secure = {"aggregation": "secure", "task": "blobs"}
    with pytest.raises(PlanError, match=r"fedasync.*give.*fedbuff"):
        prepare(config(method="fedasync", **secure), task=task)
    with pytest.raises(PlanError, match=r"buffer=2.*at least 3"):
        prepare(config(method="fedbuff", options={"buffer": 2}, **secure), task=task)
    fed = prepare(config(method="fedfix", **secure), task=task).fed
    queue = Queue().begin(dict(enumerate([0.1, 0.2, 0.3, 0.4, 1.0])))
    assert len(FedFix(period=0.1).fires(fed, queue).jobs) == 3
    assert len(FedFix(period=0.1, least=4).fires(fed, queue).jobs) == 4


def test_rules_of_the_schemes(task, config):
    fed = prepare(config(), task=task).fed
    queue = Queue().begin(dict(enumerate(TAU)))
    assert FedFix().fires(fed, queue) == every(queue, nanoseconds(0.5))
    assert FedBuff(buffer=2).fires(fed, queue) == first(queue, 2)
    assert FedAsync().fires(fed, queue) == first(queue, 1)


# -- what the weights are for ------------------------------------------------------------------------
def tail(play, method, seed, seconds, **options):
    """Return the mean distance to the federated optimum over the last half of the time, on noisy quadratics."""
    optima = np.linspace(-2.0, 2.0, 10)  # client 0, the slowest, is at one end
    task = quadratics(optima, start=0.0, noise=0.2, samples=8, seed=seed)
    local = {"momentum": 0.0, "steps": 2, "batch_size": 1, "lr": 0.02}
    times, distances = [], []
    for w, _, fed in play(task, method, 10_000, 10, seed=seed, options=local | options):
        if fed.clock.now > seconds:
            break
        times.append(fed.clock.now)
        distances.append(abs(w - optima.mean()))
    late = [d for t, d in zip(times, distances, strict=True) if t > seconds / 2]
    return float(np.mean(late))


def test_weights_remove_the_bias_and_the_period_the_variance(play):
    """Async-identical is biased towards the fast; the weights cure that, and a fixed period is steadier too."""
    identical = tail(play, "fedasync", 1, 24.0, weigh="identical")
    weighted = tail(play, "fedasync", 1, 24.0, weigh="unbiased")
    fixed = tail(play, "fedfix", 1, 24.0)
    assert identical > 0.4
    assert weighted < 0.5 * identical
    assert fixed < 0.6 * weighted


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_same_over_a_long_time(play, seed):
    identical = tail(play, "fedasync", seed, 100.0, weigh="identical")
    weighted = tail(play, "fedasync", seed, 100.0, weigh="unbiased")
    fixed, waits = tail(play, "fedfix", seed, 100.0), tail(play, "fedbuff", seed, 100.0)
    assert fixed < weighted < identical
    assert max(fixed, waits) < 0.1 < identical


def test_fedfix_reaches_a_loss_before_synchronous_fedavg(play):
    def reach(method, **options):
        task = quadratics(np.linspace(1.0, 3.0, 10))
        for w, _, fed in play(task, method, 200, 10, options=PLAIN | {"lr": 0.05} | options):
            if abs(w - 2.0) < 0.2:
                return fed.clock.now
        return float("inf")

    assert reach("fedfix") < reach("fedbuff", buffer=10)


def test_a_job_takes_time_or_is_refused(play):
    """A model of elementwise parameters alone works for its seconds; one without arithmetic would return at once, for ever."""
    task = elementwise.quadratics([1, 2, 4])
    clocks = [fed.clock.now for _, _, fed in play(task, "fedbuff", 3, 3, options=PLAIN | {"buffer": 1})]
    assert clocks == pytest.approx([0.2, 0.4, 0.6])
    with pytest.raises(ZeroCostError, match="no arithmetic"):
        next(play(replace(task, model=nn.Flatten), "fedbuff", 1, 3))
    with pytest.raises(ZeroCostError, match=r"clients \[2\] take no time"):
        Queue().begin({1: 1.0, 2: 0.0})
