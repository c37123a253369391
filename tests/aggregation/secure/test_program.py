"""Secure aggregation over the engine: same bits as its arithmetic, whatever drops out."""

from dataclasses import replace

import numpy as np
import pytest

from paceline.aggregation.secure import program
from paceline.aggregation.secure.client_functions import SecAggClient
from paceline.aggregation.secure.client_openings import Openings
from paceline.core.errors import DataError, NonFiniteError, PlanError, ProtocolError, QuorumError
from paceline.core.method import client_functions, on_client
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.registry import find_method, method_names
from paceline.run import prepare
from tests.methods.test_every_method import SMALL

SUM_ONLY = [m for m in method_names() if not any(f.each for f in client_functions(find_method(m)).values())]
FLEET = "stragglers:share=0.2,slow=3"
LOOSE = {"threshold": 5, "gamma": 0.05}


@pytest.mark.parametrize("method", SUM_ONLY)
def test_secure_and_secure_arithmetic_end_with_the_same_bits(federate, method):
    """Real keys, masks and shares on two workers, with a drop-out at each step of the run; then the same without masks on one.

    Round 2 uses keys of round 1; those that it loses take part again in round 3, whose own keys lose another client.
    """
    common = {
        "method": method,
        "clients": 10,
        "cohort": 10,
        "rounds": 3,
        "fleet": FLEET,
        "partition": "dirichlet:0.5",
        "secure": LOOSE,
    }
    common["options"] = SMALL.get(method, {}) if method != "fedbuff" else {}  # its buffer must exceed the threshold
    lost = {(2, 3, "masked"), (2, 5, "unmask"), (3, 1, "share")}

    def drop(round, client, function):
        step = function.removeprefix("secagg.")
        if function.startswith("secagg."):
            return (round, client, step) in lost
        # who is gone before it shared secrets told nothing either; who is gone later did
        return (round, client) == (3, 1) or ((round, client) == (2, 3) and function != "report")

    arithmetic = federate(aggregation="secure-arithmetic", drop=drop, **common)
    secure = federate(aggregation="secure", drop=drop, workers=2, **common)
    assert secure.model_sha256 == arithmetic.model_sha256
    assert secure.bytes_up > arithmetic.bytes_up


@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_the_bits_do_not_depend_on_the_number_of_workers(federate, method):
    common = {"method": method, "clients": 10, "cohort": 10, "rounds": 3, "fleet": FLEET, "secure": LOOSE}
    runs = [("secure", 1), ("secure", 3), ("secure-arithmetic", 3)]
    assert len({federate(aggregation=how, workers=workers, **common).model_sha256 for how, workers in runs}) == 1


def test_secure_and_plain_agree_to_within_quantisation(federate):
    plain = federate(rounds=1, clients=8, cohort=8)
    secure = federate(rounds=1, clients=8, cohort=8, aggregation="secure", secure={"bits": 20, "max_weight": 64})
    assert secure.accuracy == pytest.approx(plain.accuracy, abs=0.02)
    assert secure.loss == pytest.approx(plain.loss, rel=1e-3)


def test_federated_evaluation_is_exact_under_secure_aggregation(federate):
    plain = federate(rounds=1, clients=6, cohort=6, evaluation="federated", aggregation="secure-arithmetic")
    secure = federate(rounds=1, clients=6, cohort=6, evaluation="federated", aggregation="secure")
    assert secure.accuracy == plain.accuracy
    assert secure.loss == plain.loss


def test_a_lost_round_is_repeated_with_fresh_keys(federate):
    """Three of eight clients vanish in round 2's first attempt, after they shared secrets: too many."""
    seen = []

    def drop(round, client, function):
        if round == 2 and function == "secagg.unmask" and client < 3 and (client, function) not in seen:
            seen.append((client, function))
            return True
        return False

    summary = federate(
        method="scaffold", clients=8, cohort=8, aggregation="secure", secure={"threshold": 5, "neighbours": 7}, drop=drop
    )
    assert [r["attempts"] for r in summary.history] == [1, 2, 1]


class Twice(FedAvg):
    """Asks for a second sum in each round."""

    def round(self, fed, state):
        cohort = fed.sample()
        mean = fed.mean(self.train, state.params, over=cohort)
        fed.sum(self.evaluate, state.params, over=cohort)
        return replace(state, params=state.params + mean.delta)


def test_another_attempt_asks_clients_whose_sum_was_not_opened(federate):
    """The first sum of round 2 was opened when the second one lost its quorum: nobody opens the same work twice."""
    asked = []

    def drop(round, client, function):
        if round == 2 and function in ("secagg.masked", "secagg.advertise"):
            asked.append((client, function))
        masked = [c for c, f in asked if f == "secagg.masked"]
        return round == 2 and function == "secagg.masked" and 7 < len(masked) <= 12

    common = {"method": f"{__name__}:Twice", "clients": 14, "cohort": 6, "aggregation": "secure", "rounds": 3}
    summary = federate(drop=drop, **common)
    assert [r["attempts"] for r in summary.history] == [1, 2, 1]
    advertised = [c for c, f in asked if f == "secagg.advertise"]
    first, again = set(advertised[:6]), set(advertised[12:18])
    assert first == set(advertised[6:12])
    assert not first & again


def test_a_quorum_that_stays_lost_is_named(federate):
    with pytest.raises(QuorumError, match="fresh keys"):
        federate(clients=8, cohort=8, aggregation="secure", drop=lambda r, c, f: c < 5)


def test_a_round_is_kept_whose_evaluation_loses_its_quorum(federate):
    """Five of eight clients vanish after they trained in round 2, before they tell how the model does."""
    common = {"clients": 8, "cohort": 8, "rounds": 3, "aggregation": "secure", "evaluation": "federated"}
    masked = []

    def drop(round, client, function):
        if round == 2 and function == "secagg.masked":
            masked.append(client)
        return round == 2 and len(masked) > 8 and client < 5

    lost, whole = federate(drop=drop, **common), federate(**common)
    assert lost.model_sha256 == whole.model_sha256
    assert [r.get("unevaluated") for r in lost.history] == [None, 1, None]
    assert "accuracy" not in lost.history[1]
    assert lost.history[2]["accuracy"] == whole.history[2]["accuracy"]


def test_clipped_coordinates_are_counted(federate):
    quiet = federate(rounds=1, clients=6, cohort=6, aggregation="secure")
    loud = federate(rounds=1, clients=6, cohort=6, aggregation="secure", secure={"clip": 0.001})
    assert quiet.history[0]["note_clipped"] == 0
    assert loud.history[0]["note_clipped"] > 100


def test_each_methods_are_refused_with_an_alternative(task, config):
    with pytest.raises(PlanError, match=r"fluid.*train_part.*clip"):
        prepare(config(method="fluid", aggregation="secure"), task=task)


def test_a_cohort_of_two_is_refused(task, config):
    with pytest.raises(PlanError, match="at least 3"):
        prepare(config(aggregation="secure", clients=2, cohort=2), task=task)


def test_nan_is_named_by_the_client_that_has_it(federate):
    with pytest.raises(NonFiniteError, match="client"):
        federate(options={"lr": 1e30, "epochs": 3}, aggregation="secure", clients=4, cohort=4)


def test_a_replayed_session_is_refused(task, config):
    prepared = prepare(config(aggregation="secure", clients=5), task=task)
    state = prepared.method.init(prepared.fed)
    prepared.fed.start_round(3)
    prepared.method.round(prepared.fed, state)
    prepared.fed.engine.commit()
    prepared.fed.start_round(2)
    with pytest.raises(ProtocolError, match="replay"):
        prepared.method.round(prepared.fed, state)


def test_the_server_never_sees_a_reply(task, config, monkeypatch):
    """No masked vector that reaches the server equals, in any coordinate pattern, what the client encoded."""
    from paceline.aggregation.secure import server as module

    seen = []
    real = module.SecureServer.add_masked

    def spy(self, client, message, kind=""):
        seen.append((client, message["segments"][0]))
        return real(self, client, message, kind)

    monkeypatch.setattr(module.SecureServer, "add_masked", spy)
    prepared = prepare(config(aggregation="secure", clients=5), task=task)
    state = prepared.method.init(prepared.fed)
    prepared.fed.start_round(1)
    prepared.method.round(prepared.fed, state)
    assert len(seen) == 5
    for _, packed in seen:
        low = np.frombuffer(packed, np.uint8).reshape(-1, 3)[:, 1]  # 19 bits: the third byte is not full
        counts = np.bincount(low, minlength=256)
        # an update's middle bytes are nearly all 0 or 255; masked bytes are spread evenly
        assert counts.max() < 10


class Fails(FedAvg):
    """Client 2 fails in round 2."""

    names_clients = True

    @on_client
    def train(self, client, message):
        if client.num_samples > 2 and (client.id, client.round) == (2, 2):  # not where a reply is previewed
            raise DataError("it cannot read its data")
        return super().train(client, message)


@pytest.fixture
def recorded(monkeypatch):
    """Let clients record which sums they opened, as real ones do; return the record, which they share."""
    openings = Openings()
    monkeypatch.setattr(program, "SecAggClient", lambda directory, agreed: SecAggClient(directory, agreed, openings, "run"))
    return openings


def test_clients_that_record_what_they_open_end_with_the_same_bits(federate, recorded, monkeypatch):
    common = {"clients": 6, "cohort": 6, "rounds": 3, "aggregation": "secure", "secure": {"gamma": 0.0}}
    with_records = federate(**common)
    rows = recorded._all("SELECT run, round, survivors, function FROM opened")
    assert sorted(rows) == sorted(("run", number, "[0, 1, 2, 3, 4, 5]", "train") for number in (1, 2, 3) for _ in range(6))
    monkeypatch.undo()
    assert federate(**common).model_sha256 == with_records.model_sha256


def test_work_that_fails_on_a_client_is_hidden_in_the_sum(federate, recorded):
    """A real client sends zeros of no weight; the server learns that one failed, and not which."""
    common = {"clients": 6, "cohort": 6, "rounds": 2, "secure": {"gamma": 0.0, "bits": 24}}
    summary = federate(method=f"{__name__}:Fails", aggregation="secure", **common)
    assert [r.get("note_failed", 0.0) for r in summary.history] == [0.0, 1.0]
    assert [r["dropped"] for r in summary.history] == [0, 0]

    def drop(round, client, function):
        return (round, client) == (2, 2)

    without = federate(drop=drop, **common)
    assert summary.loss == pytest.approx(without.loss, rel=1e-4)
