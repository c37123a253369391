"""Sums over parts of a model over the network: the bits and the bytes of a simulation, and what a malicious server obtains."""

import time

import pytest
import torch

from paceline.aggregation.secure import client_functions as protocol
from paceline.aggregation.secure.messages import as_bytes
from paceline.aggregation.secure.program import secure_config
from paceline.core.errors import NonFiniteError, PacelineError
from paceline.core.failures import Declined
from paceline.core.method import client_functions
from paceline.core.nested import PartialModel, SegmentedModel
from paceline.methods.stragglers.selfpruning import SelfPruning
from paceline.registry import find_method
from paceline.submodels.cut import Cutter
from paceline.submodels.nesting import UnitSegmenter
from tests.network.conftest import OPEN
from tests.network.liar import STRICT, Sum, reasons
from tests.network.partial import fail_on, has
from tests.network.test_clear import committed

RUN = {
    "method": "fjord",
    "options": {"segmented": True, "straggler_share": 0.34, "warmup": 1},
    "clients": 6,
    "cohort": 6,
    "rounds": 4,
    "fleet": "stragglers:share=0.34,slow=3,compute=1e5",
    "secure": {"gamma": 0.0, "threshold": 3, "least_contributors": 2},
}
"""Two of six clients are slow, and two are enough for a tier."""

FEW = "[secure_aggregation]\nleast_contributors = 2\n"


@pytest.mark.parametrize(
    ("method", "aggregation"),
    [("clip", "secure"), ("fjord", "plain"), pytest.param("fjord", "secure-arithmetic", marks=pytest.mark.slow)],
)
def test_same_bits_and_bytes_as_local(networked, federate, method, aggregation):
    run = {**RUN, "aggregation": aggregation, "method": method}
    run["secure"] = {**RUN["secure"], "pipelined": False}  # the same messages in each round
    policy = OPEN.replace("[secure_aggregation]\n", FEW)
    there, here = networked(run, policy=policy), federate(vectorize="off", **run)
    assert there.model_sha256 == here.model_sha256
    assert (there.bytes_up, there.bytes_down) == (here.bytes_up, here.bytes_down)
    assert here.history[-1]["bytes_down"] < 0.98 * here.history[0]["bytes_down"]
    assert here.history[-1]["bytes_up"] < 0.95 * here.history[0]["bytes_up"]


@pytest.mark.slow
def test_keys_one_round_ahead(loopback, federate, monkeypatch):
    """Once tiers stay as they are, rounds take three exchanges; bits and bytes are those of a simulation."""
    monkeypatch.setattr(protocol, "STEADY", 2)
    run = {**RUN, "aggregation": "secure", "method": "clip", "rounds": 8}
    loopback.serve(run)
    for number in range(6):
        loopback.client(number, policy=OPEN.replace("[secure_aggregation]\n", FEW))
    there, here = loopback.finish(), federate(vectorize="off", **run)
    assert there.model_sha256 == here.model_sha256
    assert (there.bytes_up, there.bytes_down) == (here.bytes_up, here.bytes_down)
    phases = [(e["round"], e["phase"].partition("/")[0]) for e in loopback.server_lines.of("phase")]
    assert [step for round, step in phases if round == 8] == ["secagg.masked", "secagg.consistency", "secagg.unmask"]


def test_clients_that_grow_or_were_away_accept_the_public_order(loopback, federate, monkeypatch):
    """They cannot compute it: they had a part of the last model only, or none."""

    def tier(method, client, message):
        if (client._id, client.round) == (0, 5):
            raise Declined
        return 0.5 if client._id >= 4 and client.round <= 3 else 1.0

    monkeypatch.setattr(SelfPruning, "tier", tier)
    run = {**RUN, "aggregation": "secure", "method": "clip", "rounds": 7, "secure": {**RUN["secure"], "pipelined": False}}
    loopback.serve(run)
    for number in range(6):
        loopback.client(number, policy=OPEN.replace("[secure_aggregation]\n", FEW))
    there, here = loopback.finish(), federate(vectorize="off", **run)
    assert [r["dropped"] for r in there.history] == [0, 0, 0, 0, 1, 0, 0]
    assert there.model_sha256 == here.model_sha256


# -- malicious servers -----------------------------------------------------------------------------
MEASURED = STRICT.replace("gamma = 0.0", "gamma = 0.0\nnamed_clients = true").replace(
    "least = 3", "least = 3\nleast_difference = 1"
)
SECURE = {"gamma": 0.0, "threshold": 5}
SLOW = 6
"""With 9 clients and a threshold of 5, clients from this one on take the smallest tier."""


class PartSum(Sum):
    """One secure sum over parts of a model, step by step.

    Args:
        liar: the server.
        params: the model.
        order: public scores of the units.
        changes: of the session's facts.
    """

    def __init__(self, liar, params, order=None, message=None, **changes):
        declared = client_functions(find_method("fjord"))["train_part"]
        module = liar.loopback.task.build(0)
        inputs = torch.zeros(1, *liar.loopback.task.train.x.shape[1:])
        self.cutter = Cutter(module, params.layout, inputs)
        segmenter = UnitSegmenter(lambda: self.cutter)
        self.model = SegmentedModel.of(PartialModel(params=params, order=order or {}), segmenter, declared.nested)
        parts = {"parts": 6, "tiers": tuple(range(6))}
        super().__init__(
            liar, message or self.model.head, config=secure_config(SECURE), function="train_part", **{**parts, **changes}
        )

    def share(self, tiers=None, **more):
        hashes, adverts = self.server.directory_for()
        message = {**self.server.announced(hashes), **({} if tiers is None else {"tiers": tiers}), **more}
        return self.step("share", message, list(adverts), self.server.add_shares, each=adverts)

    def masked(self, parts=None, **options):
        mail, owned = self.server.inbox_for(), self.server.tiers.owned
        each = {c: {**one, "parts": self.model.share(owned[c]) if parts is None else parts} for c, one in mail.items()}
        take = lambda c, m: self.server.add_masked(c, {**m, "segments": as_bytes(m["segments"])})  # noqa: E731
        return self.step("masked", self.params, list(mail), take, each=each, **options)


@pytest.fixture
def server(sixteen, liar, monkeypatch, request):
    """A malicious server with nine clients, of which three (or the number of the parameter) declare the smallest tier."""
    first = 9 - getattr(request, "param", 9 - SLOW)
    monkeypatch.setattr(SelfPruning, "tier", lambda method, client, message: 0.5 if client._id >= first else 1.0)
    return liar(
        policy=MEASURED.replace('"1 MB"', '"9 MB"'),
        clients=9,
        cohort=9,
        method="fjord",
        options={"segmented": True},
        secure=SECURE,
        measured=True,
    )


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_tier_does_not_tell_that_a_training_failed(sixteen, liar, params, loopback, monkeypatch, adaptive):
    """Nor do measured times: the failed work is done once more, on samples drawn at random."""
    server = liar(
        policy=MEASURED,
        clients=9,
        cohort=9,
        method="fjord",
        options={"segmented": True, "straggler_share": 0.34, "warmup": 1, "adaptive": adaptive},
        secure=SECURE,
        fleet="stragglers:share=0.34,slow=50,compute=1e3",
    )
    sample = loopback.task.train.x[int(loopback.nodes[7].runner.worker.setup.split(7)[0][0])]
    fail_on(monkeypatch, find_method("fjord"), "train_part", sample, NonFiniteError("the loss is nan"))
    for round in (1, 2, 3):
        one = PartSum(server, params, round=round)
        one.to_end()
        server.loop.call(server.hub.completed, round, dict.fromkeys(range(9), ()), lambda c, now=round: committed(now))
    assert [len([text for text in server.logged(client) if "the loss is nan" in text]) for client in (6, 7, 8)] == [0, 3, 0]
    one = PartSum(server, params, round=4)
    one.advertise()
    tiers = one.server.announced(one.server.directory_for()[0])["tiers"]
    assert tiers == dict.fromkeys(range(6), 0) | dict.fromkeys((6, 7, 8), 5)


def test_a_failed_training_takes_no_longer_than_its_repetition(server, params, loopback, monkeypatch):
    """Otherwise a model that fails late on certain data would make a client appear half as fast."""
    real, sample = find_method("fjord").train_part, loopback.task.train.x[int(loopback.nodes[7].runner.worker.setup.split(7)[0][0])]

    def failing(method, client, message):
        if has(client, sample):
            time.sleep(2.0)
            raise NonFiniteError("the loss is nan")
        return real(method, client, message)

    failing.__client__ = real.__client__
    monkeypatch.setattr(find_method("fjord"), "train_part", failing)
    PartSum(server, params).to_end()
    assert any("the loss is nan" in text for text in server.logged(7))
    assert 0.0 < loopback.nodes[7].runner._trained < 1.9


def test_tiers_are_left_out_only_where_a_round_is_repeated(server, params):
    """Else a server could have half of the model trained by all, or the whole one by clients for which it is too large."""
    first = PartSum(server, params, attempt=0, tiers=(5,))
    assert reasons(first.advertise()).count("leaves out tiers of 'train_part'") == 9
    second = PartSum(server, params, attempt=1)
    second.advertise()
    third = PartSum(server, params, attempt=2, tiers=(0,))
    third.to_end()
    assert set(third.server.tiers.owned.values()) == {0}
    server.loop.call(server.hub.completed, 1, dict.fromkeys(range(9), ()), lambda c: committed(1))
    fourth = PartSum(server, params, round=2, attempt=1, tiers=(0,))
    assert reasons(fourth.advertise()).count("leaves out tiers of 'train_part'") == 9


@pytest.mark.slow  # with two slow clients also below
def test_an_honest_sum_over_parts_is_opened(server, params):
    """What the others are measured against."""
    one = PartSum(server, params)
    assert [why for why, _ in one.to_end().values()] == [None] * 9
    assert one.server.tiers.owners(0) == [0, 1, 2, 3, 4, 5]
    one.server.open()


def test_a_client_that_is_moved_to_another_tier_refuses_and_so_do_the_others(server, params):
    one = PartSum(server, params)
    one.advertise()
    hashes, adverts = one.server.directory_for()
    moved = {**one.server.announced(hashes)["tiers"], 5: 5}
    reported = server.ask("share", {"hashes": hashes, "tiers": moved}, each=adverts)
    assert "announced tier 5 for client 5, which signed tier 0" in reported[0][0]
    assert "announced tier 5 for this client, which declared tier 0" in reported[5][0]
    reasons(reported)


def test_other_tiers_for_each_client(server, params):
    """The victim's lists differ from those of the others: each list contradicts a signature."""
    one = PartSum(server, params)
    one.advertise()
    hashes, adverts = one.server.directory_for()
    true = one.server.announced(hashes)["tiers"]
    victim = server.ask("share", {"hashes": hashes, "tiers": {**true, 1: 5, 2: 5}}, clients=[0], each=adverts)
    assert "announced tier 5 for client 1, which signed tier 0" in reasons(victim)


def test_a_segment_of_few_clients_is_not_opened(server, params):
    """All but two of the clients with the whole model are reported as dropped."""
    one = PartSum(server, params).to_masked()
    one.server.alive()
    few = [0, 1, 6, 7, 8]
    reported = server.ask("consistency", {"alive": few}, clients=few)
    assert "only 2 clients are left that train segment 0 of the model; the minimum is 3" in reasons(reported)
    with pytest.raises(PacelineError):
        one.server.open()


def test_a_tier_of_two_clients_is_not_opened(server, params):
    one = PartSum(server, params).to_masked()
    one.server.alive()
    two = [0, 1, 2, 3, 4, 5, 6, 7]
    reported = server.ask("consistency", {"alive": two}, clients=two)
    assert "only 2 clients are left in tier 5; a tier has none or at least 3" in reasons(reported)


def test_the_same_work_is_not_opened_over_one_client_less_in_a_segment(server, params):
    """The difference of the two sums of segment 0 would be client 5's update there."""
    PartSum(server, params).to_end()
    for attempt, changes in enumerate(({}, {"tiers": (0, 1, 2, 3, 4)}, {"tiers": (5,)}), 2):
        two = PartSum(server, params, attempt=attempt, **changes)
        two.advertise()
        two.share()
        if changes:  # other tiers, so other owners of the segments
            assert "opened before for other survivors" in reasons(two.masked())
        else:
            two.masked()
            two.server.alive()
            alive = [0, 1, 2, 3, 4, 6, 7, 8]
            reported = server.ask("consistency", {"alive": alive}, clients=alive)
            assert "opened before for other survivors" in reasons(reported)


@pytest.mark.parametrize("server", [2], indirect=True)
def test_a_server_does_not_choose_who_fills_a_tier(server, params):
    """Client 1 joins two slow ones, whatever the server says; without it, client 6 would, and a difference be of those two."""
    one = PartSum(server, params)
    one.advertise()
    one.share()
    mail, owned = one.server.inbox_for(), one.server.tiers.owned
    assert [c for c in range(9) if owned[c] == 5] == [1, 7, 8]
    swapped = {**owned, 0: 5, 1: 0}
    each = {c: {**mail[c], "parts": one.model.share(swapped[c])} for c in (0, 1)}
    reported = server.ask("masked", one.params, clients=[0, 1], each=each)
    assert "the server sent 1 segments; tier 0 needs 6" in reported[0][0]
    assert "the server sent 6 segments; tier 5 needs 1" in reported[1][0]
    honest = PartSum(server, params, attempt=2)
    assert [why for why, _ in honest.to_end().values()] == [None] * 9
    honest.server.open()
    two = PartSum(server, params, attempt=3)
    two.step("advertise", two.session.plain(), [c for c in range(9) if c != 1], two.server.add_advert)
    two.share()
    assert two.server.tiers.members(5) == [6, 7, 8]
    assert "opened before for other survivors" in reasons(two.masked())


def test_another_order_of_the_units_is_refused(server, params):
    """The server would choose what the slow clients train, and the segments of the same model would overlap otherwise."""
    order = {g: torch.rand(n) for g, n in PartSum(server, params).cutter.groups.items()}
    one = PartSum(server, params, order=order)
    one.advertise()
    one.share()
    assert "the public order of the units is not the one that this client computes" in reasons(one.masked())


def test_another_hash_of_the_whole_model_is_refused(server, params):
    """The same model under another hash would pass for another model when sums over it are compared."""
    one = PartSum(server, params)
    one.params["model"] = one.params["model"] + 1
    two = PartSum(server, params, message=one.params)
    two.advertise()
    two.share()
    reported = two.masked()
    assert all("the model does not match the hash that all clients received" in reported[c][0] for c in range(SLOW))


def test_parts_are_not_trained_outside_of_a_secure_sum(server, params):
    one = PartSum(server, params)
    reported = server.ask("declare", "train_part", program="nested")
    assert "is not a client function" in reasons(reported) or "outside a secure sum" in reasons(reported)
    each = {c: {"owned": 0, "wanted": 0, "parts": one.model.share(0)} for c in range(9)}
    message = {"function": "train_part", "head": one.params}
    reasons(server.ask("run", message, program="nested", each=each))


@pytest.mark.parametrize("wrong", ["values", "shorter", "missing"])
def test_other_segments_than_those_of_the_hash_are_refused(server, params, wrong):
    """Another model for the slow clients, or for one of them."""
    one = PartSum(server, params)
    one.advertise()
    one.share()
    parts = one.model.share(5)
    changed = {"values": [parts[0] + 1], "shorter": [parts[0][1:]], "missing": []}[wrong]
    mail = one.server.inbox_for()
    reported = server.ask("masked", one.params, clients=[8], each={8: {**mail[8], "parts": changed}})
    expected = {"values": "does not match the hash", "shorter": "another size", "missing": "the server sent 0 segments"}[wrong]
    assert expected in reasons(reported)
