"""FedAU: the worked weights, its baselines, what the divisor is, and which bias the weights remove."""

import dataclasses

import numpy as np
import pytest

from paceline.core.client import SGD
from paceline.core.errors import PlanError
from paceline.core.method import on_client
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.methods.participation.rates import Intervals
from paceline.run import prepare
from tests.methods.quadratics import play, quadratics
from tests.methods.resuming import assert_resumes

CAME = [0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1]
USED = {
    None: [1, 1, 2, 2, 2, 2.5, 2, 2, 2, 2, 2],
    3: [1, 1, 2, 2, 2, 2.5, 2, 2, 2, 2.25, 2.25],
    2: [1, 1, 2, 2, 2, 5 / 3, 1.5, 1.5, 1.6, 1.6, 5 / 3],
    1: [1] * 11,
}


@pytest.mark.parametrize("cutoff", USED)
def test_the_worked_weights(cutoff):
    used, intervals = [], Intervals()
    for number, came in enumerate(CAME, 1):
        now = intervals.before(number, cutoff)
        used.append(now.weight)
        intervals = now.after(number) if came else intervals
    assert used == pytest.approx(USED[cutoff])


@pytest.mark.parametrize("cutoff", [None, 2, 5])
def test_intervals_are_counted_as_in_the_box_round_by_round(cutoff):
    """S grows in every round; where a client comes, or S = K, the mean takes S up and S starts anew."""
    rng = np.random.default_rng(1)
    for chance in (0.05, 0.4, 0.9):
        m, s, omega, intervals = 0, 0, 1.0, Intervals()
        for number in range(1, 200):
            came = rng.random() < chance
            now = intervals.before(number, cutoff)
            assert now.weight == pytest.approx(omega)
            s += 1
            if came or s == cutoff:
                omega, m, s = s if m == 0 else (m * omega + s) / (m + 1), m + 1, 0
            intervals = now.after(number) if came else intervals
        assert omega == pytest.approx(1 / chance if cutoff is None else 1, rel=0.6) or cutoff


def constant(clients, slope=1.0):
    """Return a task in which every gradient is `slope` everywhere."""
    task = quadratics([[slope]] * clients, start=0.0)
    return dataclasses.replace(task, loss=lambda out, y: (out * y).mean())


@pytest.mark.parametrize("cutoff", USED)
@pytest.mark.parametrize("clients", [1, 3])
def test_a_client_weighs_its_own_updates_over_all_clients(tmp_path, cutoff, clients):
    """Client 0 comes as above, nobody else ever does: each of its updates is omega / N."""
    trace = tmp_path / "trace.csv"
    trace.write_text("client,first,last\n" + "".join(f"0,{r},{r}\n" for r, came in enumerate(CAME, 1) if came) + "2,99,99\n")
    options = {"lr": 0.1, "steps": 2, "cutoff": cutoff}
    models = [0.0] + [
        float(w[0]) for w, *_ in play(constant(clients), "fedau", 11, participation=f"trace:{trace}", options=options)
    ]
    steps = -np.diff(models) * clients / 0.2
    assert steps == pytest.approx([w * came for w, came in zip(USED[cutoff], CAME, strict=True)], abs=1e-5)


class Alike(FedAvg):
    """FedAvg with a weight of 1 for everybody."""

    @on_client
    def train(self, client, message):
        local = client.sgd(message, optimizer=SGD(self.lr), steps=5, batch_size=16)
        return Update(delta=local.params - message, weight=1)


def test_full_participation_is_fedavg_bit_for_bit(federate):
    common = {"clients": 6, "cohort": 6, "rounds": 4}
    ours, plain = federate(method="fedau", **common), federate(method="fedau", options={"weigh": "all"}, **common)
    theirs = federate(method=f"{__name__}:Alike", **common)
    assert ours.model_sha256 == plain.model_sha256 == theirs.model_sha256


def test_a_cut_off_of_one_does_not_weigh(federate):
    common = {"method": "fedau", "clients": 6, "cohort": 6, "rounds": 8, "participation": "bernoulli:0.4"}
    shas = {federate(options=options, **common).model_sha256 for options in ({"cutoff": 1}, {"weigh": "all"})}
    assert len(shas) == 1
    assert federate(**common).model_sha256 not in shas


@pytest.mark.parametrize(("weigh", "expected"), [("all", 2 / 4), ("participants", 1.0), ("known", 2 / 4 / 0.25)])
def test_the_baselines(tmp_path, weigh, expected):
    """Two of four clients come, in one round of four: the step in units of one update."""
    trace = tmp_path / "trace.csv"
    trace.write_text("client,first,last\n1,1,1\n2,1,1\n3,4,4\n0,4,4\n")
    steps = play(constant(4), "fedau", 1, participation=f"trace:{trace}", options={"lr": 0.1, "steps": 1, "weigh": weigh})
    assert -float(next(iter(steps))[0][0]) / 0.1 == pytest.approx(expected, abs=1e-5)


def test_known_rates_need_everybody_who_is_there(task, config):
    with pytest.raises(PlanError, match="with a cohort of 6"):
        prepare(config(method="fedau", clients=6, cohort=3, options={"weigh": "known"}), task=task)


def test_importance_by_samples_weighs_large_clients_more():
    """Full participation from w = 0, one step: the step is sum_u n_u/sum(n) b_u, or the plain mean."""
    task = quadratics([[1.0], [4.0]], sizes=[3, 1])
    one = lambda **o: float(next(iter(play(task, "fedau", 1, options={"lr": 0.1, "steps": 1, **o})))[0][0])  # noqa: E731
    assert one(importance="samples") == pytest.approx(0.1 * (3 * 1.0 + 4.0) / 4)
    assert one() == pytest.approx(0.1 * 2.5)


# -- in a federation -----------------------------------------------------------------------------------
def test_it_learns_also_under_masks_and_with_drop_outs(federate):
    common = {"method": "fedau", "rounds": 16, "clients": 10, "cohort": 10, "partition": "dirichlet:1", "options": {"lr": 0.1}}
    common |= {"secure": {"gamma": 0.2, "delta": 0.2}, "participation": "bernoulli:0.4-1", "seed": 1}
    plain = federate(drop=lambda r, c, f: (c + r) % 10 == 0, **common)
    assert plain.accuracy > 0.7
    secure = federate(
        aggregation="secure", drop=lambda r, c, f: f.endswith("masked") and r % 4 == 0 and (c + r) % 10 == 0, **common
    )
    assert secure.accuracy == pytest.approx(plain.accuracy, abs=0.08)


def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path, task):
    assert_resumes(tmp_path, task, method="fedau", cohort=6, participation="bernoulli:0.5")


def test_a_reply_that_is_lost_is_no_participation():
    """Client 0's reply in round 3 comes too late to count: its interval goes on to round 4."""
    steps = play(constant(1), "fedau", 6, options={"lr": 0.1, "steps": 1}, meet=late_in(3))
    models = [float(w[0]) for w, *_ in steps]
    assert -np.diff([0.0, *models]) / 0.1 == pytest.approx([1, 1, 0, 1, 4 / 3, 5 / 4], abs=1e-5)


def late_in(number):
    """Let the only reply of a round come after the deadline, and let the round go on as if it were a drop-out."""

    def meet(fed):
        mean = fed.mean

        def asked(fn, message, over):
            if fed.round == number:
                mean(fn, message, over)
                fed.engine.withdraw(fed._verbs, over)
                return Update(delta=message.params.zeros(), weight=0)
            return mean(fn, message, over)

        fed.mean = asked

    return meet


# -- what it is for ------------------------------------------------------------------------------------
def distance(seed, rounds=400, **options):
    """Return the tail distance to the optimum where those with a high optimum come rarely."""
    rng = np.random.default_rng(seed)
    b = rng.normal(size=(20, 3)) + np.linspace(-1.5, 1.5, 20)[:, None]
    task = quadratics(b, start=b.mean(0))
    local = {"lr": 0.02, "steps": 5} | options
    steps = play(task, "fedau", rounds, seed=seed, participation="bernoulli:0.05-1", options=local, vectorize="on", chunk=20)
    return float(np.mean([np.linalg.norm(w - b.mean(0)) for w, *_ in steps][-rounds // 2 :]))


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_weights_remove_the_bias_of_unequal_rates(seed):
    rounds = 100 if seed == 1 else 400
    participants = distance(seed, rounds, weigh="participants")
    assert distance(seed, rounds) < 0.5 * participants
    if seed > 1:
        assert distance(seed, rounds, cutoff=50) < 0.5 * participants
        assert distance(seed, rounds, weigh="known") < 0.5 * participants
