"""Records for neighbours that are sealed a round ahead: bits and memory are those of five exchanges, and of sums without masks."""

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from paceline.core.errors import QuorumError
from paceline.core.failures import Declined
from paceline.core.method import on_client
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.methods.stragglers.clip import Clip
from paceline.methods.stragglers.fjord import Fjord
from paceline.run import prepare
from paceline.tasks.sequence import split_classes
from tests.aggregation.secure.test_preparation import EIGHT, LOOSE, PARTS, Watch, reasons, soon
from tests.conftest import make_task

__all__ = ["reasons", "soon"]


def heard(client, message, other=0.0):
    """Return an update that depends on each record that this client has heard."""
    factor = 0.1 + 0.01 * (other + sum(sum(record) for record in client.peers.values()))
    return Update(delta=(client.sgd(message).params - message) * factor, weight=client.num_samples)


@pytest.fixture
def alike(config):
    """Return a function that runs a method with keys ahead, in five exchanges and without masks, and returns the lengths of rounds."""

    def go(task=None, **common):
        def one(**changes):
            watch = Watch()
            run = prepare(config(**{**common, **changes}), task=task or make_task(), drop=watch)
            found = run.go()
            memories = {c: {k: v for k, v in m.items() if k != "_secagg"} for c, m in run.fed.engine.memories.items()}
            return found, repr(sorted((c, m) for c, m in memories.items() if m)), watch.lengths

        options = common.pop("secure", LOOSE)
        ahead = one(aggregation="secure", secure=options)
        for other in (
            one(aggregation="secure", secure={**options, "pipelined": False}),
            one(aggregation="secure-arithmetic", secure=options),
        ):
            assert other[0].model_sha256 == ahead[0].model_sha256
            assert other[1] == ahead[1]
            assert [r["dropped"] for r in other[0].history] == [r["dropped"] for r in ahead[0].history]
        return ahead[2]

    return go


class Named(FedAvg):
    """A method whose tests know clients by number."""

    names_clients = True

    @on_client
    def report(self, client, message):
        return [1.0]

    @on_client(peer_record="report")
    def train(self, client, message):
        return heard(client, message)


class Reports(Named):
    """Sends a record that changes with the round and with what the last training stored, and stores something while it is formed."""

    @on_client
    def report(self, client, message):
        client.memory["asked"] = client.memory.get("asked", 0) + 1
        return [float(client.round), client.memory.get("trained", 0.0), float(client.memory["asked"])]

    @on_client(peer_record="report")
    def train(self, client, message):
        assert [record[:2] for record in client.peers.values()] == [[client.round, client.round - 1]] * 7
        client.memory["trained"] = float(client.round)
        return heard(client, message, client.memory["asked"])


class Draws(Named):
    """Sends what it draws; with the records of the others each client knows the same total."""

    @on_client
    def report(self, client, message):
        client.memory["drawn"] = float(torch.rand(()))
        return [client.memory["drawn"]]

    @on_client(peer_record="report")
    def train(self, client, message):
        return heard(client, message, client.memory["drawn"])


class InPlace(Named):
    """Changes a list of its memory in place."""

    @on_client
    def report(self, client, message):
        client.memory["seen"] = seen = client.memory.get("seen", [])
        seen.append(client.round)
        return [float(len(seen))]


@pytest.mark.parametrize("method", ["Reports", "Draws", "InPlace"])
def test_records_are_those_of_the_round_in_which_they_are_used(alike, method):
    assert alike(**EIGHT, method=f"{__name__}:{method}") == [5, 3, 3, 3]


class Counted(Named):
    """Sends its number of samples."""

    @on_client
    def report(self, client, message):
        return [float(client.num_samples)]


def test_records_of_data_that_change_with_the_round(alike):
    task = split_classes(make_task(), stages=4, rounds_each=1, heads=False)
    assert alike(task, **EIGHT, method=f"{__name__}:Counted", partition="dirichlet:0.3") == [5, 3, 3, 3]


PADDED = {**PARTS, "method": "clip", "options": {"straggler_share": 0.34, "warmup": 1}}
ADAPTIVE = {**PADDED, "options": {"straggler_share": 0.34, "adaptive": True}}


@pytest.mark.slow
@pytest.mark.parametrize("common", [PADDED, ADAPTIVE], ids=["padded", "adaptive"])
def test_rounds_of_pruned_clients_take_three_exchanges(alike, federate, common):
    assert alike(**common) == [5] + [3] * (common["rounds"] - 1)
    one, two = (federate(aggregation="secure", workers=workers, **common).model_sha256 for workers in (1, 2))
    assert one == two


def test_rounds_of_parts_take_three_exchanges_once_tiers_stay(alike, soon):
    assert alike(**PARTS, method="clip")[-2:] == [3, 3]


class RestsInParts(Fjord):
    """Client 2 has a tier and sits out round 4."""

    names_clients = True

    @on_client
    def report(self, client, message):
        if client.id == 2 and client.round == 4:
            raise Declined
        return [1.0, 1.0]

    def tier(self, client, message):
        return 1.0


class Parts(RestsInParts):
    """Nobody sits out."""

    @on_client
    def report(self, client, message):
        return [1.0, 1.0]


def test_parts_are_prepared_once_tiers_have_stayed_for_five_rounds(federate):
    watch = Watch()
    federate(aggregation="secure", drop=watch, **{**PARTS, "rounds": 7}, method=f"{__name__}:Parts")
    assert watch.lengths == [5, 5, 5, 5, 5, 3, 3]


# -- clients that sit out ---------------------------------------------------------------------------
class Rests(Named):
    """Client 2 sits out every third round; what it has stored before is reset."""

    @on_client
    def report(self, client, message):
        client.memory["asked"] = client.memory.get("asked", 0) + 1
        if client.id == 2 and client.round % 3 == 0:
            raise Declined
        return [float(client.memory["asked"])]


class RestsTwice(Rests):
    """Decides in the training too."""

    @on_client(peer_record="report")
    def train(self, client, message):
        if client.id == 2 and client.round % 3 == 0:
            raise Declined
        return heard(client, message)


def test_a_client_that_will_sit_out_prepares_and_leaves_when_the_round_has_begun(alike, federate):
    """Until the last round is over nothing tells; the round after the one without it is not prepared."""
    common = {**EIGHT, "rounds": 5}
    assert alike(**common, method=f"{__name__}:Rests") == [5, 3, 3, 5, 3]
    del common["secure"]
    once, twice = (federate(**common, method=f"{__name__}:{name}") for name in ("Rests", "RestsTwice"))
    assert [r["dropped"] for r in once.history] == [0, 0, 1, 0, 0]
    assert once.model_sha256 == twice.model_sha256


def test_a_client_that_sits_out_a_sum_over_parts(alike, soon):
    assert alike(**{**PARTS, "rounds": 5}, method=f"{__name__}:RestsInParts") == [5, 5, 3, 3, 5]


class Nobody(Named):
    """All sit out."""

    @on_client
    def report(self, client, message):
        raise Declined


def test_a_round_that_all_sit_out_is_refused(federate):
    with pytest.raises(QuorumError, match="all clients sit out"):
        federate(method=f"{__name__}:Nobody", clients=8, cohort=8)


# -- records that would be out of date --------------------------------------------------------------
class After(Named):
    """A second sum of each round changes what the record tells."""

    def round(self, fed, state):
        over = fed.sample()
        state = replace(state, params=state.params + fed.mean(self.train, state.params, over=over).delta)
        return replace(state, params=state.params + fed.mean(self.polish, state.params, over=over).delta)

    @on_client
    def report(self, client, message):
        return [float(client.memory.get("polished", 0.0))]

    @on_client
    def polish(self, client, message):
        client.memory["polished"] = float(client.round)
        return heard(client, message)


class Trains(Clip):
    """A second training of each round changes the times that the record tells."""

    def round(self, fed, state):
        state = super().round(fed, state)
        return replace(state, params=state.params + 0.1 * fed.mean(self.polish, state.params, over=fed.sample()).delta)

    @on_client
    def polish(self, client, message):
        return Update(delta=client.sgd(message, epochs=3).params - message, weight=client.num_samples)


def test_a_record_is_not_used_if_another_function_ran_after_it(alike, reasons):
    assert alike(**EIGHT, method=f"{__name__}:After") == [10, 8, 8, 8]
    assert "after they had sealed their records" in reasons()[2]


@pytest.mark.slow
def test_nor_are_times_of_a_training_before_the_last_one(alike):
    alike(**PADDED | {"method": f"{__name__}:Trains"})


def test_evaluations_by_clients_leave_records_as_they_are(alike):
    assert alike(**EIGHT, method=f"{__name__}:Reports", evaluation="clients")[0] > 5
    assert alike(**EIGHT, method=f"{__name__}:Reports", evaluation="federated", client_test=0.2, eval_every=4)[1:3] == [3, 3]


class Stumbles(Reports):
    """The record of the next round cannot be formed before that round has begun."""

    begun: ClassVar[list[int]] = []

    def round(self, fed, state):
        self.begun.append(fed.round)
        return super().round(fed, state)

    @on_client
    def report(self, client, message):
        if client.id == 2 and client.round > self.begun[-1]:
            raise ValueError("too early")
        return super().report(client, message)


def test_a_record_that_cannot_be_formed_ahead_ends_the_preparation_only(federate, reasons):
    """In a simulation; a real client seals an absent one, as `tests/network/test_clear.py` shows."""
    watch, common = Watch(), {**EIGHT, "method": f"{__name__}:Stumbles"}
    summary = federate(aggregation="secure", drop=watch, **common)
    assert watch.lengths == [5] * 4
    assert reasons()[2] == "the shares of clients [2] did not arrive in the round before"
    assert [r.get("dropped", 0) for r in summary.history] == [0] * 4
