"""A server that lies, asks too much, or goes back: clients do not answer, their logs say why, and nothing else leaves them."""

import dataclasses
import itertools
import json
from datetime import UTC, datetime

import grpc
import pytest
import torch

from paceline.aggregation.secure.program import secure_config
from paceline.core.errors import PacelineError
from paceline.core.method import client_functions
from paceline.deploy.plan import Plan
from paceline.network import Hub
from paceline.registry import find_method
from paceline.run import RunConfig
from tests.network.liar import RUN, SECURE, STRICT, Sum, reasons

NOW = datetime.now(UTC)


def test_an_honest_sum_is_answered(liar, params):
    """What the others are measured against."""
    one = Sum(liar(), params).to_masked()
    one.consistency()
    reported = one.unmask()
    assert [why for why, _ in reported.values()] == [None] * 4
    assert one.server.open()


@pytest.mark.parametrize(
    ("program", "function"),
    [
        ("method", "round"),
        ("method", "init"),
        ("method", "__init__"),
        ("method", "build"),
        ("os", "system"),
        ("secagg", "directory"),
    ],
)
def test_nothing_but_registered_functions_runs(liar, params, program, function):
    assert "not a client function" in reasons(liar().ask(function, params, program))


@pytest.mark.parametrize(("kind", "match"), [("each", "only summed"), ("sum", "outside"), ("telepathy", "outside")])
def test_no_reply_leaves_outside_of_a_secure_sum(liar, params, kind, match):
    assert match in reasons(liar().ask("train", params, "method", kind=kind))


def test_a_cohort_that_shrinks_is_refused(liar):
    server = liar()
    for clients in ([0], [0, 1]):
        reported = server.ask("advertise", facts_of(server, clients), clients=clients[:1])
        assert "cohort.least" in reasons(reported)
    one = Sum(server, attempt=7)
    assert "must be an ascending list" in reasons(one.advertise(clients=[0, 1, 2, 3, 3, 3]))


def facts_of(server, clients):
    facts = {"id": bytes(32), "round": 1, "attempt": 3, "clients": clients, "neighbours": 1, "threshold": 1, "tell_bytes": 64}
    facts |= {"function": "train", "trial": 0, "call": 1, "task": bytes(32), "parts": 0, "tiers": [], "prepared": False}
    return {**facts, "config": dataclasses.asdict(secure_config(SECURE))}


@pytest.mark.parametrize("changes", [{"active": False}, {"gamma": 0.3}, {"threshold": 2, "active": False}, {"bits": 24}])
def test_options_that_are_not_the_plan_s_are_refused(liar, changes):
    one = Sum(liar(), config=secure_config({**SECURE, **changes}))
    assert "differ from the plan" in reasons(one.advertise())


def test_both_kinds_of_share_are_never_given(liar, params):
    one = Sum(liar(), params).to_masked()
    one.consistency()
    first = one.unmask()
    assert all(set(v["self"]) == set(range(4)) - {c} and v["keys"] == {} for c, (_, v) in first.items())
    assert "no open session" in reasons(one.liar.ask("unmask", None, each={c: {} for c in range(4)}))
    assert "no open session" in reasons(one.liar.ask("consistency", {"alive": [0, 1, 2]}))


def test_different_survivor_lists_open_nothing(liar, params):
    """Two clients are told that 3 dropped out, two that it did not: neither half signs enough of the other's list."""
    one = Sum(liar(), params).to_masked()
    one.alive = one.server.alive()
    signatures = {}
    for alive, clients in (([0, 1, 2], [0, 1]), ([0, 1, 2, 3], [2, 3])):
        reported = one.liar.ask("consistency", {"alive": alive}, clients=clients)
        signatures |= {c: value["signature"] for c, (why, value) in reported.items() if why is None}
    reported = one.liar.ask("unmask", None, each={c: {v: s for v, s in signatures.items() if v != c} for c in range(4)})
    assert "signed the same list" in reasons(reported)


def test_lists_that_are_too_short_are_not_signed(liar, params):
    one = Sum(liar(), params).to_masked()
    assert "2 remaining clients" in reasons(one.liar.ask("consistency", {"alive": [0, 1]}, clients=[0, 1]))


FULL, SHORT = {"alive": [0, 1, 2, 3]}, {"alive": [0, 1]}


@pytest.mark.parametrize(
    ("message", "own", "match"),
    [
        ({**FULL, "all": SHORT, "own": {}}, None, "nothing else"),
        ({"all": SHORT, "own": {}}, None, "2 remaining clients"),
        (SHORT, {}, "2 remaining clients"),
        ({**FULL, "all": SHORT}, {}, "nothing else"),
        ({"alive": dict.fromkeys([0, 1])}, None, "a list of survivors"),
    ],
)
def test_the_policy_judges_the_list_that_is_signed(liar, params, message, own, match):
    one = Sum(liar(), params).to_masked()
    each = {} if own is None else {0: own, 1: own}
    assert match in reasons(one.liar.ask("consistency", message, clients=[0, 1], each=each))


def test_a_session_that_is_no_session_is_not_judged_without_its_facts(liar):
    server = liar()
    facts = facts_of(server, [0, 1])
    for message in ({**facts, "clients": dict.fromkeys([0, 1])}, {**facts, "config": None}, {"all": facts, "own": facts}):
        assert "malformed session" in reasons(server.ask("advertise", message))
    assert "malformed session" in reasons(server.ask("advertise", facts, each=dict.fromkeys(range(4), facts)))


def test_a_second_sum_of_the_same_work_over_others_is_not_opened(liar, params):
    """The server dies after it opened a sum, and says in the next one that a client dropped out."""
    server = liar()
    one = Sum(server, params).to_masked()
    one.consistency()
    one.unmask()
    server.hub.progress.incarnation = 2
    server.numbers = itertools.count((2 << 32) + 1)
    old = list(server.hub.sessions.values())
    for session in old:
        server.loop.call(session.close, grpc.StatusCode.UNAVAILABLE, "started again")
    server.wait(lambda: sum(s.ready and s not in old for s in server.hub.sessions.values()) == 4)
    two = Sum(server, params, attempt=2).to_masked()
    two.server.alive()
    assert "opened before" in reasons(server.ask("consistency", {"alive": [0, 1, 2]}, clients=[0, 1, 2]))


def test_a_round_is_not_opened_again_and_again(liar, params):
    """Whatever the server calls them: each repetition tells a little more of the same work."""
    server = liar(policy=STRICT.replace("rounds = 5", "rounds = 5\nopenings = 3"))
    for attempt in range(3):
        reported = Sum(server, params, attempt=attempt + 1, trial=attempt % 2, call=attempt + 1).to_end()
        assert [why for why, _ in reported.values()] == [None] * 4
    last = Sum(server, params, attempt=9, trial=9)
    last.advertise()
    last.share()
    assert "3 sums of round 1 were opened" in reasons(last.masked())


def test_replays_are_refused(liar, params):
    server = liar()
    one = Sum(server, params, round=2).to_masked()
    one.consistency()
    one.unmask()
    again = Sum(server, round=2)
    assert "replay" in reasons(again.advertise())  # the same round and attempt
    number = next(server.numbers)
    assert "no open session" in reasons(server.ask("consistency", {"alive": [0, 1, 2, 3]}, number=number, round=2))
    assert "replay" in reasons(server.ask("consistency", {"alive": [0, 1, 2, 3]}, number=number - 1, round=2))
    server.loop.call(
        server.hub.completed, 2, dict.fromkeys(range(4), ()), lambda c: {"round": 2, "saved": 2, "kept": True, "took": 0.0}
    )
    assert "is over" in reasons(Sum(server, round=2, attempt=9).advertise())
    assert "is over" in reasons(Sum(server, round=1, attempt=9).advertise())
    assert [why for why, _ in Sum(server, round=3).advertise().values()] == [None] * 4


def test_functions_inside_a_secure_sum_are_checked(liar, params):
    server = liar(method="fedgh")
    for function in ("__class__", "round", "directory"):
        assert "not a client function" in reasons(Sum(server, params, function="evaluate").advertise(function=function))
    singly = next(name for name, declared in client_functions(find_method("fedgh")).items() if declared.each)
    assert "its replies cannot be summed" in reasons(Sum(server, params, function="evaluate").advertise(function=singly))


@pytest.mark.parametrize(
    ("policy", "run", "match"),
    [
        (STRICT, {"aggregation": "plain"}, "secure is required"),
        (STRICT, {"aggregation": "secure-arithmetic"}, "secure is required"),
        (STRICT, {"rounds": 50}, "50 rounds"),
        (STRICT, {"clients": 4, "cohort": 2}, "cohort of 2"),
        (STRICT, {"secure": {"active": False}}, "checks against a malicious server"),
        ('[allow]\nmethods = ["scaffold"]', {}, "'fedavg' is not allowed"),
        ("[privacy]\nepsilon = 1.0", {}, "differential privacy"),
    ],
)
def test_plans_beyond_the_policy_are_refused_with_the_reason(liar, params, policy, run, match):
    server = liar(policy=policy, **run)
    assert len(server.hub.dispatcher.refusals) == 4
    assert match in server.hub.dispatcher.refusals[0]
    assert match in reasons(server.ask("advertise", None))


def test_a_plan_that_is_not_the_run_is_refused(liar):
    server = liar(plan=Plan.of(RunConfig.build({**RUN, "secure": SECURE})), rounds=500)
    assert "does not match its configuration" in server.hub.dispatcher.refusals[0]


def test_messages_beyond_the_policy_are_refused(liar):
    reported = liar().ask("advertise", {"clients": [0, 1, 2, 3], "weight": torch.zeros(300_000)})
    assert "limits.message_bytes" in reasons(reported)


def test_messages_that_are_refused_or_repeated_are_counted(liar, params, loopback):
    server = liar(policy=STRICT + 'bytes = "2 MB"\n')

    def counted():
        return json.loads((loopback.root / "state0" / "ledger.json").read_text())["runs"]["lie"]

    assert "malformed session" in reasons(server.ask("advertise", {"weight": torch.zeros(100_000)}))
    first = counted()
    assert 400_000 < first["bytes"] < 402_000
    assert first["rounds"] == 0
    for _ in range(2):
        assert "malformed session" in reasons(Sum(server, params).advertise(weight=torch.zeros(100_000)))
    assert 1_200_000 < counted()["bytes"] < 1_206_000
    assert [why for why, _ in Sum(server, params).to_end().values()] == [None] * 4
    reported = server.ask("advertise", {"weight": torch.zeros(220_000)})
    assert "limits.bytes" in reasons(reported)
    assert "limits.bytes" in reasons(Sum(server, params, attempt=9).advertise())


def test_an_answer_that_is_sent_again_is_counted_again(liar, params, loopback):
    one = Sum(liar(), params)
    one.advertise()
    ledger = loopback.nodes[0].runner.rules.ledger
    before, last = ledger.usage("lie", NOW).bytes, next(one.liar.numbers) - 1
    one.liar.ask("advertise", one.session.plain(), number=last)
    loopback.wait(lambda: ledger.usage("lie", NOW).bytes > before)
    assert ledger.usage("lie", NOW).bytes == 2 * before
    assert ledger.usage("lie", NOW).rounds == 1


def test_a_run_that_cannot_be_joined_leaves_nothing_of_itself(liar, params, loopback):
    """The policy accepts its plan, but the model does not fit: the run before is not answered under the other one's rules."""
    server = liar()
    runner, path = loopback.nodes[0].runner, loopback.root / "state0"
    welcome, digest = runner.at, (path / "lie" / "plan").read_text()
    plan = {**server.offer(), "plan": Plan.of(server.config.model_copy(update={"rounds": 4})).to_tree()}
    plan["config"]["rounds"] = 4
    plan["layout"][-1][2][0] += 1
    with pytest.raises(PacelineError):
        runner.join(dataclasses.replace(welcome, run="other", plan=plan))
    assert "has not joined" in reasons(server.ask("advertise", Sum(server, params).session.plain(), clients=[0]))
    assert not (path / "other" / "plan").exists()
    assert list(json.loads((path / "ledger.json").read_text())["runs"]) == ["lie"]
    runner.join(welcome)
    assert (path / "lie" / "plan").read_text() == digest
    assert [why for why, _ in Sum(server, params).to_end().values()] == [None] * 4


def test_rounds_beyond_the_policy_are_refused(liar):
    server = liar(policy=STRICT.replace("rounds = 5", "rounds = 5\nrounds_per_day = 2"))
    for round in (1, 2, 3):
        reported = Sum(server, round=round).advertise()
        if round < 3:
            assert [why for why, _ in reported.values()] == [None] * 4
    assert "rounds_per_day" in reasons(reported)


def test_a_wrong_number_is_refused(liar, monkeypatch):
    monkeypatch.setattr(Hub, "_welcome", lambda self, s, real=Hub._welcome: {**real(self, s), "number": s.client + 1})
    assert "addresses this client as number" in liar().hub.dispatcher.refusals[0]
