"""Clients that come and go: rates, the published simulators step by step, traces, and rounds in which nobody is there."""

import math
import pickle

import numpy as np
import pytest

from paceline.core.errors import CohortError, ConfigError, DataFormatError, UnknownNameError
from paceline.core.random import numpy_rng
from paceline.devices import Fleet, load_fleet, load_participation
from paceline.run import prepare


def there(process, clients, rounds):
    """Return who is there, shape [rounds, clients]."""
    return np.array([[process.available(c, r) for c in range(clients)] for r in range(1, rounds + 1)])


def test_rates_of_everybody_of_groups_and_evenly():
    assert [load_participation("bernoulli:0.3", 4).rate(c) for c in range(4)] == [0.3] * 4
    assert [load_participation("bernoulli:1/0.1", 4).rate(c) for c in range(4)] == [1.0, 1.0, 0.1, 0.1]
    assert [load_participation("bernoulli:1e-1-1", 4).rate(c) for c in range(4)] == pytest.approx([0.1, 0.4, 0.7, 1.0])
    assert load_participation("always", 4).rate(3) == 1.0


@pytest.mark.parametrize(
    "spec", ["bernoulli:0.05-1", "markov:0.05-1,step=0.3", "cyclic:0.05-1,length=20", "diurnal:0.05-0.5,swing=1"]
)
def test_the_part_of_rounds_is_the_rate(spec):
    process = load_participation(spec, 6, seed=3)
    rates = [process.rate(c) for c in range(6)]
    seen = there(process, 6, 2000).mean(0)
    # A Markov chain's mean varies by (1 + r) / (1 - r) more than that of independent draws, r being how much it remembers.
    assert seen == pytest.approx(rates, abs=0.08)
    assert rates[0] < 0.1


def test_processes_depend_on_the_seed_and_on_nothing_else():
    one = load_participation("markov:0.3", 5, seed=1)
    again = pickle.loads(pickle.dumps(one))
    assert there(one, 5, 50).tolist() == there(again, 5, 50).tolist()
    assert there(one, 5, 50).tolist() != there(load_participation("markov:0.3", 5, seed=2), 5, 50).tolist()
    late = load_participation("markov:0.3", 5, seed=1)
    assert [late.available(c, 50) for c in range(5)] == there(one, 5, 50)[-1].tolist(), "asked for round 50 first"


@pytest.mark.parametrize("rates", ["0.5", "0.05", "0.9", "1", "0.02"])
@pytest.mark.parametrize("step", [0.05, 0.7, 1.0])
def test_markov_is_the_chain_walked_forward(rates, step):
    """Start at the rate p, come with a, go with a (1/p - 1); where that exceeds 1, divide a by it and go for sure."""
    process = load_participation(f"markov:{rates},step={step}", 2, seed=4)
    p = float(rates)
    come, go = step, step * (1 / p - 1)
    if go > 1:
        come, go = come / go, 1.0
    for client in range(2):
        on = process._uniform(client, 1) < p
        for number in range(1, 120):
            if number > 1:
                draw = process._uniform(client, number)
                on = draw < (1 - go if on else come)
            assert process.available(client, number) == on


def test_markov_clients_stay_for_long():
    def changes(spec):
        seen = there(load_participation(spec, 10, seed=1), 10, 300)
        return (seen[1:] != seen[:-1]).mean()

    assert changes("markov:0.5,step=0.05") < 0.2 * changes("bernoulli:0.5")


def test_cycles_have_the_published_lengths():
    """Away for max(1, C - on) rounds, there for on = max(1, round(C p)); whose rate is 1 never goes."""
    for rate, on in (("0.02", 1), ("0.26", 3), ("0.999", 10), ("1", 10)):
        process = load_participation(f"cyclic:{rate},length=10", 3, seed=5)
        length = 10 if rate in ("0.02", "0.26", "1") else 11
        seen = there(process, 3, 5 * length)
        assert (seen.reshape(5, length, 3).sum(1) == on).all()
        assert (seen == np.roll(seen, length, 0)).all()
        for client in range(3):
            assert np.abs(np.diff(seen[:, client].astype(int))).sum() <= 10, "one stay in each cycle"
    starts = {load_participation("cyclic:0.5,length=10", 50, seed=5).available(c, 1) for c in range(50)}
    assert starts == {True, False}


def test_days_and_nights():
    process = load_participation("diurnal:0.4,period=12,swing=1,zones=2", 200, seed=6)
    assert process.chance(0, 12) == pytest.approx(0.8)
    assert process.chance(0, 6) == pytest.approx(0.0)
    assert process.chance(199, 6) == pytest.approx(0.8), "the other zone is half a day apart"
    seen = there(process, 200, 24)
    assert seen[5, :100].sum() == 0
    assert seen[11, :100].mean() == pytest.approx(0.8, abs=0.12)
    own = load_participation("diurnal:0.4,period=12", 200, seed=6)
    assert len({round(own.chance(c, 1), 6) for c in range(200)}) > 150
    strong = load_participation("diurnal:0.8,period=12,zones=1", 2)
    assert strong.rate(0) == pytest.approx(np.mean([min(0.8 * (1 + math.cos(2 * math.pi * r / 12)), 1) for r in range(12)]))


def test_a_trace_says_who_is_there(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text("client,first,last\n0,1,2\n0,6,6\n1,3,4\n1,2,3\n2,1,6\n9,1,1\n")
    process = load_participation(f"trace:{file}", 4)
    expected = ["101", "111", "011", "011", "001", "101"]
    assert ["".join(str(int(process.available(c, r))) for c in range(3)) for r in range(1, 7)] == expected
    assert [process.available(0, r) for r in (7, 8, 9)] == [True, True, False], "it begins anew"
    assert process.rate(1) == pytest.approx(0.5)
    assert (process.rate(3), process.available(3, 1)) == (0.0, False)
    longer = load_participation(f"trace:{file},length=10", 4)
    assert [r for r in range(1, 14) if longer.available(2, r)] == [1, 2, 3, 4, 5, 6, 11, 12, 13]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("client,start,end\n0,1,2\n", "line 1 must be the header client,first,last"),
        ("client,first,last\n0,1\n", "line 2 must be three whole numbers"),
        ("client,first,last\n0,1,2\n0,5,x\n", "line 3 must be three whole numbers"),
        ("client,first,last\n0,0,2\n", "line 2: rounds 0 to 2"),
        ("client,first,last\n0,3,2\n", "line 2: rounds 3 to 2"),
        ("client,first,last\n", "no intervals"),
        ("", "header"),
    ],
)
def test_a_malformed_trace_is_told_by_its_line(tmp_path, text, words):
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(DataFormatError, match=words):
        load_participation(f"trace:{file}", 1)


def test_traces_that_do_not_fit_are_told(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text("client,first,last\n0,1,5\n")
    with pytest.raises(ConfigError, match="has 1 clients, but the run has 2"):
        load_participation(f"trace:{file}", 2)
    with pytest.raises(ConfigError, match="length=4 must be at least its last round, 5"):
        load_participation(f"trace:{file},length=4", 1)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_participation(f"trace:{tmp_path / 'none.csv'}", 1)


def test_rates_follow_the_labels():
    """p_n = max(least, C mean <mix_n, kappa>), at most 1, with one kappa for all."""
    table = np.random.default_rng(0).integers(0, 40, size=(30, 5))
    process = load_participation("bernoulli:labels,mean=0.2,least=0.1,alpha=0.5", 30, 7, lambda: table)
    kappa = numpy_rng(7, "participation", "labels").dirichlet(np.full(5, 0.5))
    expected = np.clip(5 * 0.2 * (table / table.sum(1, keepdims=True)) @ kappa, 0.1, 1.0)
    assert [process.rate(c) for c in range(30)] == pytest.approx(expected)
    assert len(set(expected)) > 5
    with pytest.raises(ConfigError, match="class counts; pass mix"):
        load_participation("bernoulli:labels", 30)
    with pytest.raises(ConfigError, match="mean and least"):
        load_participation("bernoulli:labels,mean=0", 30, 7, lambda: table)


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("bernouli:0.3", UnknownNameError, "did you mean bernoulli"),
        ("markov:0.3,steps=1", UnknownNameError, "did you mean step"),
        ("bernoulli:0.3,mean=1", UnknownNameError, "option of participation"),
        ("bernoulli", ConfigError, "'' is not a number"),
        ("bernoulli:often", ConfigError, "'often' is not a number"),
        ("bernoulli:0", ConfigError, "above 0 and at most 1"),
        ("bernoulli:1.5", ConfigError, "above 0 and at most 1"),
        ("bernoulli:nan", ConfigError, "not a finite number"),
        ("bernoulli:1/1/1/1/1", ConfigError, "4 clients cannot form 5 groups"),
        ("always:1", ConfigError, "does not take a value"),
        ("markov:0.3,step=0", ConfigError, "step=0"),
        ("markov:0.3,step=0.1,step=0.2", ConfigError, "each one once"),
        ("cyclic:0.3,length=1", ConfigError, "at least 2 rounds"),
        ("cyclic:0.3,length=2.5", ConfigError, "must be a whole number"),
        ("diurnal:0.3,zones=5", ConfigError, "zones <= clients"),
    ],
)
def test_what_cannot_be_is_named(spec, error, words):
    with pytest.raises(error, match=words):
        load_participation(spec, 4)


def test_a_fleet_multiplies_churn_and_participation():
    fleet = load_fleet("stragglers:churn=0.5", 40, 2, load_participation("bernoulli:1/0.2", 40, 2))
    seen = there(fleet, 40, 200)
    assert fleet.rate(0) == 0.5
    assert fleet.rate(39) == pytest.approx(0.1)
    assert seen[:, :20].mean() == pytest.approx(0.5, abs=0.03)
    assert seen[:, 20:].mean() == pytest.approx(0.1, abs=0.02)
    assert isinstance(fleet, Fleet)


# -- in a run ------------------------------------------------------------------------------------------
def skipped(summary):
    return [r["round"] for r in summary.history if r.get("skipped")]


def test_a_round_without_anybody_is_skipped(federate):
    summary = federate(participation="bernoulli:0.2", rounds=20, seed=3)
    process = load_participation("bernoulli:0.2", 6, 3)
    nobody = [r for r in range(1, 21) if not there(process, 6, 20)[r - 1].any()]
    assert nobody
    assert skipped(summary) == nobody
    for record in summary.history:
        if record["round"] in nobody:
            assert (record["bytes_up"], record["dropped"], record["round_seconds"]) == (0, 0, 0.0)
            assert "accuracy" in record


def test_nobody_ever_there_leaves_the_model_as_it_was(tmp_path, federate, task, config):
    file = tmp_path / "trace.csv"
    file.write_text("client,first,last\n9,1,1\n")
    summary = federate(participation=f"trace:{file}", rounds=3)
    assert skipped(summary) == [1, 2, 3]
    prepared = prepare(config(), task=task)
    assert summary.model_sha256 == prepared.fed.init_params().sha256()


@pytest.mark.parametrize("aggregation", ["plain", "secure-arithmetic", "secure"])
def test_a_round_with_too_few_for_the_sum_is_skipped(federate, tmp_path, aggregation):
    """Round 2 has two clients: enough for a plain sum, not for one that hides them from each other."""
    file = tmp_path / "trace.csv"
    file.write_text("client,first,last\n" + "".join(f"{c},1,{3 if c < 2 else 1}\n{c},3,3\n" for c in range(6)))
    summary = federate(participation=f"trace:{file}", rounds=3, aggregation=aggregation)
    assert skipped(summary) == ([] if aggregation == "plain" else [2])
    assert skipped(federate(participation=f"trace:{file}", rounds=3, quorum=3)) == [2]


def test_skipped_rounds_come_out_the_same_after_a_resume(tmp_path, task):
    from tests.methods.resuming import assert_resumes

    assert_resumes(tmp_path, task, method="scaffold", participation="bernoulli:0.2", seed=3)


def test_without_a_process_an_absent_cohort_is_still_an_error(federate):
    with pytest.raises(CohortError, match="no client is available"):
        federate(fleet="stragglers:churn=0.9999999")


def test_available_gives_everybody_or_a_draw(task, config):
    fed = prepare(config(participation="bernoulli:0.6", clients=6, cohort=6), task=task).fed
    fed.start_round(2)
    everybody = fed.available()
    assert everybody == [c for c in range(6) if fed.fleet.available(c, 2)]
    assert fed.sample() == everybody
    assert len(fed.available(2)) == 2
    assert set(fed.available(2)) <= set(everybody)
