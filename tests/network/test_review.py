"""Attacks on the whole path of a secure sum, each played to its end; without a corrupt client unless a test says so."""

import math

import grpc
import numpy as np
import pytest

from paceline.aggregation.secure.program import secure_config
from paceline.aggregation.secure.task_hash import Agreement, halves
from paceline.core.errors import LayoutError, QuorumError
from paceline.core.layout import Layout
from paceline.core.params import Params
from paceline.core.serialization import dumps, loads
from paceline.methods.participation.rates import Asked
from paceline.network.client_runner import Runner
from paceline.registry import find_method
from paceline.run import RunConfig
from tests.network.conftest import OPEN
from tests.network.liar import SECURE, Sum, reasons
from tests.network.partial import OPTIONS, Failing, Partial


def test_a_quarter_that_was_not_asked_for_shares_shows_none_of_its_members(sixteen, liar, params):
    """A quarter gives its vectors and is not asked for shares. If the others opened their halves, the rest would be its sum.

    Its members have helped to open nothing, so they help to open a sum without the victim; but no half is split again.
    """
    server = liar(clients=16, cohort=16, secure=OPTIONS)
    everybody, attempts = list(range(16)), iter(range(1, 100))
    common = Sum(server, params, clients=everybody, config=secure_config(OPTIONS)).work.common
    first, second = halves(common, everybody, 3)
    known, quarter = halves(common, first, 3)
    rest = [c for c in everybody if c not in quarter]
    whole = Partial(server, params, everybody, next(attempts)).go(unmask=rest)
    assert whole is not None
    half = Partial(server, params, second, next(attempts)).go()
    assert half is not None
    Partial(server, params, first, next(attempts)).go(unmask=known)  # opens nothing, but lets them go on to their quarter
    other = Partial(server, params, known, next(attempts)).go()
    victim, *left = quarter
    last = Partial(server, params, left, next(attempts))
    without = last.go()
    if other is not None and without is not None:
        raise AssertionError(f"the server holds client {victim}'s update: {(whole - half - other - without)[:5]}")
    assert other is None


@pytest.mark.parametrize("method", ["fjord"])
def test_a_memory_that_changes_does_not_make_other_work(liar, params, method):
    """The function notes something in its memory, which does not change its answer: the server takes a client out in between."""
    server = liar(method=method, secure=OPTIONS, measured=True)
    found = [Partial(server, params, clients, attempt).go() for attempt, clients in ((1, [0, 1, 2, 3]), (2, [0, 1, 2]))]
    assert found[0] is not None
    assert found[1] is None, f"the server holds client 3's update: {(found[0] - found[1])[:5]}"


# -- what all must have agreed on ----------------------------------------------------------------
ALIKE = [
    ({"lr": None}, {"lr": math.nan}),
    ({"lr": None}, {"lr": math.inf}),
    ({"lr": -math.inf}, {"lr": math.inf}),
    ({"x": {1: 2}}, {"x": {"1": 2}}),
    ({"x": b"a"}, {"x": "a"}),
    ({"x": 1}, {"x": True}),
    ({"x": 0.0}, {"x": -0.0}),
    ({"x": None}, {}),
]


@pytest.mark.parametrize("pair", ALIKE, ids=str)
@pytest.mark.parametrize("field", ["options", "task_options"])
def test_runs_that_differ_are_never_agreed_on_as_one(pair, field):
    """A server would show one client the true options, and the others some with which they give nothing."""
    one, other = (Agreement.of(RunConfig(**{field: options}), find_method("fedavg")) for options in pair)
    assert one.run != other.run
    assert one.method != other.method


def test_the_same_run_is_agreed_on_wherever_it_came_from():
    config = RunConfig(options={"lr": 0.1, "epochs": 2}, task_options={"a": [1, 2]}, secure={"bits": 12}, deadline=None)
    sent = loads(dumps(config.model_dump(mode="json", exclude_none=True)))
    assert Agreement.of(RunConfig.build(sent), find_method("fedavg")) == Agreement.of(config, find_method("fedavg"))


def test_rounds_beyond_the_plan_are_not_answered(liar, params):
    """Each round opens sums; a plan of five rounds is one of five."""
    server = liar(policy="[secure_aggregation]\ngamma = 0.0", rounds=2)
    assert [why for why, _ in Sum(server, params, round=2).advertise().values()] == [None] * 4
    assert "exceeds the 2 rounds of the accepted plan" in reasons(Sum(server, params, round=3, attempt=2).advertise())


# -- what a client remembers between the steps of a sum ------------------------------------------
def test_what_was_opened_meanwhile_counts_before_the_shares_are_given(liar, params, loopback):
    """Two processes of one client have one book: the other one has helped to open the same work since this one signed."""
    server = liar(secure=OPTIONS)
    one = Partial(server, params, [0, 1, 2, 3], 1)
    one.to_masked().consistency()
    program = loopback.nodes[0].runner.worker.setup.programs["secagg"]
    own = loopback.nodes[0].runner.worker.sessions[0].state.work
    program.openings.record(own, "lie", 1, [0, 1, 2])
    reported = one.unmask()
    assert "opened before" in reported[0][0]
    assert [reported[c][0] for c in (1, 2, 3)] == [None] * 3


def test_a_list_that_was_signed_counts_in_place_of_the_cohort(liar, params):
    """Half of six had dropped out when the list was shown: what is left of it may go on."""
    server = liar(clients=6, cohort=6, secure=OPTIONS)
    with pytest.raises(QuorumError):
        Partial(server, params, range(6), 1).go(alive=[0, 1, 2, 3])
    assert Partial(server, params, [0, 1, 2], 2).go() is not None


def rejoin(server, number):
    """Start the server again, with what it offers now."""
    server.hub.progress.incarnation = number
    old = list(server.hub.sessions.values())
    server.hub.dispatcher.refusals.clear()
    for session in old:
        server.loop.call(session.close, grpc.StatusCode.UNAVAILABLE, "started again")
    server.wait(lambda: sum(s not in old for s in server.hub.sessions.values()) == 4)
    server.together()


def test_a_plan_that_was_agreed_to_is_not_exchanged_for_another(liar):
    """Under the name of the run, whose ledger and memory go on: more rounds than were agreed to."""
    server = liar(policy="[secure_aggregation]\ngamma = 0.0")
    server.config = server.config.model_copy(update={"rounds": 50})
    server.hub.plan = server.offer()
    rejoin(server, 2)
    assert len(server.hub.dispatcher.refusals) == 4
    assert "differs from the one accepted" in server.hub.dispatcher.refusals[0]


def test_a_method_s_module_is_imported_only_where_the_client_names_it(liar):
    """A policy that allows modules by a pattern is about what runs; what is imported, the client's own configuration says."""
    policy = "[secure_aggregation]\ngamma = 0.0\n[allow]\nmethods = ['*:*']"
    server = liar(policy=policy, method="paceline.methods.optimisation.fedavg:FedAvg")
    assert len(server.hub.dispatcher.refusals) == 4
    assert "add its module to client.modules" in server.hub.dispatcher.refusals[0]


# -- what is still open --------------------------------------------------------------------------
HAIR = """
[secure_aggregation]
gamma = 0.0
[cohort]
difference_scope = "{}"
"""


@pytest.mark.parametrize(
    ("scope", "round", "open"), [("model", 1, True), ("round", 1, False), ("round", 2, True), ("always", 2, False)]
)
def test_a_model_that_differs_by_a_hair(liar, params, monkeypatch, scope, round, open):
    """Two sums over cohorts that differ in one client: in two rounds they look like any others, so the policy says what may be."""
    server = liar(secure=OPTIONS, policy=HAIR.format(scope))
    seen = Failing(monkeypatch, set(), None)
    other = Params(params.vector.clone(), params.layout)
    other.vector[0] += 1e-6
    first = Partial(server, params, [0, 1, 2, 3], 1).go()
    update = seen.updates[3]
    second = Partial(server, other, [0, 1, 2], 2, round=round)
    found = second.go()
    if not open:
        assert found is None
        assert all("differs in 1 clients" in why for why in second.why)
        return
    found = first - found
    alike = abs(found @ update) / (np.linalg.norm(found) * np.linalg.norm(update))
    assert alike > (0.99 if round == 1 else 0.7), "then the documents need not warn of it"  # orders of batches differ by round


LINES = [[0, 1, 2], [0, 3, 4], [0, 5, 6], [1, 3, 5], [1, 4, 6], [2, 3, 6], [2, 4, 5]]
"""Any two cohorts share one client and differ in four."""


def test_where_data_are_one_batch_two_rounds_show_a_client_exactly(liar, params, monkeypatch):
    """The size of a batch is an option of the method, and so the server's."""
    server = liar(secure=OPTIONS, policy=HAIR.format("round"), options={"batch_size": 1000})
    seen = Failing(monkeypatch, set(), None)
    other = Params(params.vector.clone(), params.layout)
    other.vector[0] += 1e-6
    first = Partial(server, params, [0, 1, 2, 3], 1).go()
    update = seen.updates[3]
    found = first - Partial(server, other, [0, 1, 2], 2, round=2).go()
    assert abs(found @ update) / (np.linalg.norm(found) * np.linalg.norm(update)) > 0.99, "then the documents need not warn of it"


@pytest.mark.parametrize(("difference", "open"), [(1, True), (3, False)])
def test_seven_models_that_differ_by_a_hair_over_seven_cohorts(sixteen, liar, params, monkeypatch, difference, open):
    """The seven sums of one round have one solution: the update of each client, though any two cohorts differ in four."""
    policy = f"[secure_aggregation]\ngamma = 0.0\n[cohort]\nleast_difference = {difference}"
    server = liar(clients=7, cohort=7, secure=OPTIONS, policy=policy)
    seen, sums = Failing(monkeypatch, set(), None), []
    for number, line in enumerate(LINES):
        other = Params(params.vector.clone(), params.layout)
        other.vector[0] += 1e-6 * number
        one = Partial(server, other, line, number + 1)
        sums.append(one.go())
        if number and not open:
            assert sums[-1] is None
            assert any("several such sums together could reveal single clients" in why for why in one.why)
    if open:
        lines = np.array([[float(c in line) for c in range(7)] for line in LINES])
        found = np.linalg.solve(lines, np.array(sums, dtype=float))
        for client, update in seen.updates.items():
            alike = abs(found[client] @ update) / (np.linalg.norm(found[client]) * np.linalg.norm(update))
            assert alike > 0.99, "then the documents need not warn of it"


def test_a_model_that_all_but_one_client_fail_on(liar, params, monkeypatch):
    """Whose loss is infinite gives zeros, and is counted as one of the sum: so a sum over four may be one client's update."""
    server = liar(secure=OPTIONS, partition="groups:0-2/0,3/1,3/2-3", policy="[secure_aggregation]\ngamma = 0.0")
    seen = Failing(monkeypatch, set(), None)
    bad = Params(params.vector.clone(), params.layout)
    bad.vector[bad.layout.num_params - 4 :][1:3] = -3.4e38  # the biases of two classes, which client 1 alone has none of
    found = Partial(server, bad, [0, 1, 2, 3], 1).go()
    assert set(seen.updates) == {1}
    assert np.allclose(found / (2**15 - 1), seen.updates[1], atol=1 / 2**14), "then the documents need not warn of it"


@pytest.mark.parametrize("allowed", [False, True])
def test_a_message_that_makes_all_but_one_count_nothing(liar, params, loopback, monkeypatch, allowed):
    """The message is the same for all, but each client reads its own line of it."""
    policy = f"[secure_aggregation]\ngamma = 0.0\nnamed_clients = {str(allowed).lower()}\n"
    server = liar(method="fedau", options={"weigh": "known"}, secure=OPTIONS, policy=policy)
    if not allowed:
        reported = [facts["reasons"] for facts in loopback.client_lines.of("refused")]
        assert len(reported) == 4
        assert all("named_clients" in reason for [reason] in reported)
        return
    seen = Failing(monkeypatch, set(), None)
    rates = {0: 1.0, 1: 1e30, 2: 1e30, 3: 1e30}
    found = Partial(server, Asked(params=params, rates=rates), [0, 1, 2, 3], 1).go()
    update = seen.updates[0]
    assert abs(found @ update) / (np.linalg.norm(found) * np.linalg.norm(update)) > 0.9, "then no policy need forbid it"


@pytest.mark.parametrize("aggregation", ["secure", "plain"])
def test_what_does_not_fit_is_found_at_joining(loopback, liar, aggregation):
    """A server whose model has a class more: clients do not wait for the first round to find out."""
    server = liar(join=False, aggregation=aggregation, secure=SECURE if aggregation == "secure" else {})
    plan = server.offer()
    plan["layout"][-1][2][0] += 1
    server.hub.plan = plan
    for number in server.clients:
        loopback.client(number, server.port, OPEN.replace("required", "gamma = 0.0\nrequired"))
    server.together()
    assert len(server.hub.dispatcher.refusals) == 4
    reported = loopback.client_lines.of("refused")[0]
    name = plan["layout"][-1][0]
    assert name in (reported["why"] if aggregation == "secure" else reported["reasons"][0])
    assert (name in server.hub.dispatcher.refusals[0]) is (aggregation == "plain")


@pytest.mark.parametrize("aggregation", ["secure", "plain"])
def test_another_version_of_the_method_is_found_at_joining(loopback, liar, aggregation):
    server = liar(join=False, aggregation=aggregation, secure=SECURE if aggregation == "secure" else {})
    server.hub.plan = {**server.offer(), "method": "00" * 32}
    for number in server.clients:
        loopback.client(number, server.port, OPEN.replace("required", "gamma = 0.0\nrequired"))
    server.together()
    refusals = list(server.hub.dispatcher.refusals.values())
    assert len(refusals) == (4 if aggregation == "secure" else 0)
    assert all("another version" in why for why in refusals)


def test_a_layout_from_the_wire_is_checked():
    assert (
        Layout.from_plain(Layout.build([("w", (2, 3), "param")]).to_plain()).digest == Layout.build([("w", (2, 3), "param")]).digest
    )
    for wrong in (None, 3, [1], [["w", "param"]], [["w", "other", [2]]], [["w", "param", ["x"]]], [[b"w", "param", [2]]]):
        with pytest.raises(LayoutError):
            Layout.from_plain(wrong)


FJORD = {
    "method": "fjord",
    "options": {"adaptive": True, "warmup": 1, "straggler_share": 0.5},
    "clients": 6,
    "cohort": 6,
    "rounds": 4,
}


def test_times_that_a_server_sends_with_a_commit_are_not_used(loopback, monkeypatch):
    """With each commit a server can send how long a client's round took, and send each what it likes: all but one would sit out."""
    commit = Runner.commit
    monkeypatch.setattr(Runner, "commit", lambda self, head: commit(self, {**head, "took": 0.5 if self.number == 2 else 500.0}))
    loopback.serve({**FJORD, "aggregation": "secure", "secure": {}, "measured": True}, {"least": 6})
    for client in range(6):
        loopback.client(client, policy="")
    loopback.finish()
    times = [node.runner.worker.memories[n]["_times"] for n, node in loopback.nodes.items()]
    assert all(0 < work < 60 and 0 <= moved < 60 for work, moved in times)


def test_times_of_a_fleet_that_the_server_chose_are_refused(loopback):
    loopback.serve({**FJORD, "aggregation": "secure", "secure": {}}, {"least": 1})  # else the first refusal ends the run
    for client in range(6):
        loopback.client(client, policy="")
    loopback.wait(lambda: len(loopback.client_lines.of("refused")) == 6)
    assert all("measured = true" in facts["reasons"][0] for facts in loopback.client_lines.of("refused"))
