"""A server that lies, asks too much, or goes back: clients tell it why they do not answer, and nothing else."""

import asyncio
import dataclasses
import itertools

import grpc
import pytest

from paceline.aggregation.secagg import secure_config
from paceline.aggregation.secure.server import SecureServer
from paceline.aggregation.secure.simulate import new_session
from paceline.aggregation.wires import as_bytes
from paceline.call import Call, Each
from paceline.deploy.gate import Gate
from paceline.deploy.identity import PinnedDirectory
from paceline.deploy.plan import Plan
from paceline.deploy.trust import Trust
from paceline.engines.grpc import Credentials, Hub, HubSettings, LoopThread, Patience, Progress, Server
from paceline.engines.grpc.frames import Part
from paceline.engines.grpc.phase import Phase
from paceline.run import RunConfig
from paceline.wire import NETWORK

STRICT = """
[cohort]
least = 3
least_quorum = 3
[limits]
rounds = 5
message_bytes = "1 MB"
"""
RUN = {"method": "fedavg", "task": "blobs", "clients": 4, "cohort": 4, "rounds": 5, "aggregation": "secure", "on_error": "drop"}
SECURE = {"threshold": 3, "gamma": 0.0}


class Liar:
    """A server with good certificates that asks what it likes."""

    def __init__(self, loopback, policy=STRICT, clients=4, plan=None, **run):
        self.loopback = loopback
        root = loopback.root
        self.config = RunConfig.build({**RUN, "secure": SECURE, **run})
        trust = Trust.load(root / "server" / "trust.pem")
        self.directory = PinnedDirectory(root / "server" / "directory", trust)
        gate = Gate(trust, root / "server" / "directory", root / "server" / "crl.pem")
        facts = {"config": self.config.model_dump(mode="json", exclude_none=True), "plan": (plan or Plan.of(self.config)).to_tree()}
        self.hub = Hub(gate, Progress("lie", 1), facts, HubSettings(heartbeat=5.0))
        self.loop = LoopThread("liar")
        credentials = Credentials.read(root / "server" / "server.key", root / "server" / "server.pem", trust.roots)
        self.server = Server(self.hub, credentials, "127.0.0.1:0")
        self.port = self.loop.wait(self.server.start())
        self.numbers = itertools.count((1 << 32) + 1)
        self.clients = range(clients)
        for number in self.clients:
            loopback.client(number, self.port, policy)
        self.wait(lambda: len(self.hub.asking.refusals) + sum(s.ready for s in self.hub.sessions.values()) == clients)

    def wait(self, condition):
        async def until():
            while not condition():
                await asyncio.sleep(0.01)

        self.loop.wait(until(), 10)

    def ask(self, function, message=None, program="secagg", clients=None, each=None, round=1, number=None, kind="each", stream="s"):
        """Put any call to clients; return what each gave: (reason or None, value or None)."""
        clients = list(self.clients if clients is None else clients)
        number = next(self.numbers) if number is None else number
        facts = {"id": number, "program": program, "function": function, "round": round, "take": 0, "stream": stream}
        facts |= {"deadline": None, "channel": {"kind": kind}, "cohort": len(clients)}
        call = Call(function, message, clients, round, stream, Each(), program, each or {})
        phase = Phase(number, call, function, facts, Part.of(message), Patience(phase=5.0))
        self.loop.call(self.hub.asking.open, phase)
        told = {}
        for _ in clients:
            arrival = phase.arrivals.get(timeout=10)
            reply = arrival.message
            value = reply.tree(0, NETWORK) if reply is not None and reply.parts else None
            told[arrival.client] = (arrival.why if reply is None else reply.head["dropped"], value)
        self.loop.call(self.hub.asking.shut)
        for client, (why, _) in told.items():
            if why is not None:
                assert self.logged(client, why.removeprefix("refused: ")), f"client {client} did not log {why!r}"
        return told

    def logged(self, client, why):
        """Return whether a client's own log says what it refused, and why."""
        lines = self.loopback.client_lines
        reasons = [*lines.of("not_answered"), *({"client": f["client"], "why": "; ".join(f["reasons"])} for f in lines.of("refused"))]
        return any(facts["client"] == client and (why in facts["why"] or facts["why"] in why) for facts in reasons)

    def close(self):
        self.loop.wait(self.server.stop("enough", True))
        self.loop.stop()


class Sum:
    """One secure sum, step by step, so that any step can be another."""

    def __init__(self, liar, round=1, attempt=1, clients=None, config=None):
        self.liar, self.round = liar, round
        self.session = new_session(list(liar.clients if clients is None else clients), config or secure_config(SECURE), round, attempt)
        self.server = SecureServer(self.session, liar.directory.publics(self.session.clients), 1)
        self.task = {"function": "train", "message": None, "stream": "0/method.train/1", "bounds": {}}

    def step(self, name, message, clients, take, **options):
        told = self.liar.ask(name, message, clients=clients, round=self.round, **options)
        for client, (why, value) in told.items():
            if why is None:
                take(client, value)
        return told

    def advertise(self, **changes):
        facts = {f.name: getattr(self.session, f.name) for f in dataclasses.fields(self.session) if f.name != "config"}
        facts |= {"clients": list(self.session.clients), "config": dataclasses.asdict(self.session.config), **changes}
        return self.step("advertise", facts, self.session.clients, self.server.add_advert)

    def share(self, tells=None):
        hashes, adverts = self.server.directory_for()
        return self.step("share", {"hashes": hashes, "tells": tells}, list(adverts), self.server.add_shares, each=adverts)

    def masked(self, params, **changes):
        mail = self.server.mail_for()
        task = {**self.task, "message": params, **changes}
        take = lambda c, m: self.server.add_masked(c, {**m, "segments": as_bytes(m["segments"])})  # noqa: E731
        return self.step("masked", task, list(mail), take, each=mail)

    def consistency(self, alive=None):
        self.alive = self.server.alive()
        return self.step("consistency", {"alive": alive or self.alive}, self.alive, self.server.add_signature)

    def unmask(self):
        signatures = self.server.signatures_for()
        return self.step("unmask", None, list(signatures), self.server.add_unmasking, each=signatures)

    def to_masked(self, params):
        self.advertise()
        self.share()
        self.masked(params)
        return self


@pytest.fixture
def params(loopback):
    from paceline.params import Layout, Params

    module = loopback.task.build(0)
    return Params.of(module, Layout.of(module, None, "average"))


@pytest.fixture
def liar(loopback):
    made = []

    def make(**options):
        made.append(Liar(loopback, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def reasons(told):
    assert all(value is None for _, value in told.values()), "a client answered"
    assert all(why for why, _ in told.values())
    return " ".join(why for why, _ in told.values())


def test_an_honest_sum_is_answered(liar, params):
    """What the others are measured against."""
    one = Sum(liar()).to_masked(params)
    one.consistency()
    told = one.unmask()
    assert [why for why, _ in told.values()] == [None] * 4
    assert one.server.open()


@pytest.mark.parametrize(
    ("program", "function"),
    [("method", "round"), ("method", "init"), ("method", "__init__"), ("method", "build"), ("os", "system"), ("secagg", "directory")],
)
def test_nothing_but_registered_functions_runs(liar, params, program, function):
    assert "no client function" in reasons(liar().ask(function, params, program))


@pytest.mark.parametrize(("kind", "match"), [("each", "only summed"), ("sum", "outside of"), ("telepathy", "outside of")])
def test_no_reply_leaves_outside_of_a_secure_sum(liar, params, kind, match):
    assert match in reasons(liar().ask("train", params, "method", kind=kind))


def test_a_cohort_that_shrinks_is_refused(liar):
    server = liar()
    for clients in ([0], [0, 1]):
        told = server.ask("advertise", facts_of(server, clients), clients=clients[:1])
        assert "refused" in reasons(told)
    one = Sum(server, attempt=7)
    assert "not an ascending list" in reasons(one.advertise(clients=[0, 1, 2, 3, 3, 3]))


def facts_of(server, clients):
    facts = {"id": bytes(32), "round": 1, "attempt": 3, "clients": clients, "neighbours": 1, "threshold": 1, "tell_bytes": 64}
    return {**facts, "config": dataclasses.asdict(secure_config(SECURE))}


@pytest.mark.parametrize("changes", [{"active": False}, {"gamma": 0.3}, {"threshold": 2, "active": False}, {"bits": 24}])
def test_options_that_are_not_the_plan_s_are_refused(liar, changes):
    one = Sum(liar(), config=secure_config({**SECURE, **changes}))
    assert "other options" in reasons(one.advertise())


def test_both_kinds_of_share_are_never_given(liar, params):
    one = Sum(liar()).to_masked(params)
    one.consistency()
    first = one.unmask()
    assert all(set(v["self"]) == set(range(4)) - {c} and v["keys"] == {} for c, (_, v) in first.items())
    assert "no session" in reasons(one.liar.ask("unmask", None, each={c: {} for c in range(4)}))
    assert "opened before" in reasons(one.liar.ask("consistency", {"alive": [0, 1, 2]}))


def test_different_survivor_lists_open_nothing(liar, params):
    """Two clients are told that 3 dropped out, two that it did not: neither half signs enough of the other's list."""
    one = Sum(liar()).to_masked(params)
    one.alive = one.server.alive()
    signatures = {}
    for alive, clients in (([0, 1, 2], [0, 1]), ([0, 1, 2, 3], [2, 3])):
        told = one.liar.ask("consistency", {"alive": alive}, clients=clients)
        signatures |= {c: value["signature"] for c, (why, value) in told.items() if why is None}
    told = one.liar.ask("unmask", None, each={c: {v: s for v, s in signatures.items() if v != c} for c in range(4)})
    assert "signed the list" in reasons(told)


def test_lists_that_are_too_short_are_not_signed(liar, params):
    one = Sum(liar()).to_masked(params)
    assert "only 2 clients are left" in reasons(one.liar.ask("consistency", {"alive": [0, 1]}, clients=[0, 1]))


def test_a_second_sum_of_the_same_work_over_others_is_not_opened(liar, params):
    """The server dies after it opened a sum, and says in the next one that a client dropped out."""
    server = liar()
    one = Sum(server).to_masked(params)
    one.consistency()
    one.unmask()
    server.hub.progress.incarnation = 2
    server.numbers = itertools.count((2 << 32) + 1)
    old = list(server.hub.sessions.values())
    for session in old:
        server.loop.call(session.close, grpc.StatusCode.UNAVAILABLE, "started again")
    server.wait(lambda: sum(s.ready and s not in old for s in server.hub.sessions.values()) == 4)
    two = Sum(server, attempt=2).to_masked(params)
    two.server.alive()
    assert "opened before" in reasons(server.ask("consistency", {"alive": [0, 1, 2]}, clients=[0, 1, 2]))


def test_a_round_is_not_opened_again_and_again(liar, params):
    """Each attempt is other work, but on the same data: a few differ enough, many would not."""
    server = liar()
    for attempt in range(4):
        one = Sum(server, attempt=attempt + 1)
        one.task["stream"] = f"{attempt}/method.train/1"
        one.to_masked(params).consistency()
        told = one.unmask()
    assert "3 attempts" in reasons(told)


def test_replays_are_refused(liar, params):
    server = liar()
    one = Sum(server, round=2).to_masked(params)
    one.consistency()
    one.unmask()
    again = Sum(server, round=2)
    assert "replay" in reasons(again.advertise())  # the same round and attempt
    number = next(server.numbers)
    assert "no session" in reasons(server.ask("consistency", {"alive": [0, 1, 2, 3]}, number=number, round=2))
    assert "replay" in reasons(server.ask("consistency", {"alive": [0, 1, 2, 3]}, number=number - 1, round=2))
    server.loop.call(server.hub.completed, 2, frozenset(range(4)), lambda c: {"round": 2, "saved": 2, "kept": True, "took": 0.0})
    assert "is over" in reasons(Sum(server, round=2, attempt=9).advertise())
    assert "is over" in reasons(Sum(server, round=1, attempt=9).advertise())
    assert [why for why, _ in Sum(server, round=3).advertise().values()] == [None] * 4


def test_functions_inside_a_secure_sum_are_checked(liar, params):
    server = liar()
    one = Sum(server)
    one.advertise()
    assert "told" in reasons(one.share(tells="train"))
    two = Sum(server, attempt=2)
    two.advertise()
    two.share()
    assert "no client function" in reasons(two.masked(params, function="__class__"))


@pytest.mark.parametrize(
    ("policy", "run", "match"),
    [
        (STRICT, {"aggregation": "plain"}, "secure is required"),
        (STRICT, {"aggregation": "secure-arithmetic"}, "secure is required"),
        (STRICT, {"rounds": 50}, "50 rounds"),
        (STRICT, {"clients": 4, "cohort": 2}, "cohorts of 2"),
        (STRICT, {"secure": {"active": False}}, "active checks"),
        ('[allow]\nmethods = ["scaffold"]', {}, "'fedavg' is not allowed"),
        ('[privacy]\nepsilon = 1.0', {}, "differential privacy"),
    ],
)
def test_plans_beyond_the_policy_are_refused_with_the_reason(liar, params, policy, run, match):
    server = liar(policy=policy, **run)
    assert len(server.hub.asking.refusals) == 4
    assert match in server.hub.asking.refusals[0]
    assert match in reasons(server.ask("advertise", None))


def test_a_plan_that_is_not_the_run_is_refused(liar):
    server = liar(plan=Plan.of(RunConfig.build({**RUN, "secure": SECURE})), rounds=500)
    assert "not the same run" in server.hub.asking.refusals[0]


def test_messages_beyond_the_policy_are_refused(liar):
    import torch

    told = liar().ask("advertise", {"clients": [0, 1, 2, 3], "weight": torch.zeros(300_000)})
    assert "limits.message_bytes" in reasons(told)


def test_rounds_beyond_the_policy_are_refused(liar):
    server = liar(policy=STRICT.replace("rounds = 5", "rounds = 5\nrounds_per_day = 2"))
    for round in (1, 2, 3):
        told = Sum(server, round=round).advertise()
        if round < 3:
            assert [why for why, _ in told.values()] == [None] * 4
    assert "rounds_per_day" in reasons(told)


def test_a_wrong_number_is_refused(liar, monkeypatch):
    monkeypatch.setattr(Hub, "_welcome", lambda self, s, real=Hub._welcome: {**real(self, s), "number": s.client + 1})
    assert "takes this client for number" in liar().hub.asking.refusals[0]
