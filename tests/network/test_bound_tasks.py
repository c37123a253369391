"""A malicious server without any corrupt client: what shapes an answer is the same for all, or there is no answer.

Each test plays an attack to its end. What the server holds then says as little of the victim's update as a guess.
"""

import dataclasses
import hashlib
import itertools

import grpc
import numpy as np
import pytest
import torch

from paceline.aggregation.secure.encoding import signed, unpack
from paceline.aggregation.secure.messages import as_bytes
from paceline.aggregation.secure.program import secure_config
from paceline.aggregation.secure.session import segments_of
from paceline.aggregation.secure.task_hash import Agreement, Work
from paceline.core.engine import ClientFunction
from paceline.core.errors import PacelineError, SumOverflowError
from paceline.core.params import Params
from paceline.network.handshake import HIDDEN
from paceline.registry import find_method
from tests.network.liar import STRICT, Sum, reasons

TRUE = {}
"""What each client's function returned last."""


@pytest.fixture(autouse=True)
def truth(monkeypatch):
    """Note what the clients compute, to hold against what the server gets."""
    from paceline.engines.worker import Worker

    real = Worker.invoke

    def invoke(self, me, function, message):
        reply = real(self, me, function, message)
        if function == "train":
            TRUE[me._id] = reply.delta.vector.clone().numpy()
        return reply

    monkeypatch.setattr(Worker, "invoke", invoke)
    TRUE.clear()


def likeness(vector, victim):
    """Return the absolute cosine of a vector and the victim's update: near 1 where it is the same."""
    a, b = np.asarray(vector, dtype=np.float64), TRUE[victim]
    return abs(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-30)


def assert_nothing_learnt(one, reported, victim=0):
    """Check that nothing was opened, and that a masked vector looks like no update."""
    with pytest.raises(PacelineError):
        one.server.open()
    _, value = reported.get(victim, (None, None))
    if value is not None:
        segments = segments_of(value["table"])
        main, data = next((s, d) for s, d in zip(segments, as_bytes(value["segments"]), strict=True) if s.name == "main")
        assert likeness(signed(unpack(data, main), main), victim) < 0.5


def dead(params):
    """Return a model whose gradient is zero nearly everywhere: all its units are off."""
    return Params(torch.full_like(params.vector, -100.0), params.layout)


def test_an_honest_sum_is_the_sum(liar, params):
    """What the others are measured against: the sum is opened, and a masked vector looks like nothing."""
    one = Sum(liar(), params)
    one.advertise()
    one.share()
    reported = one.masked()
    one.consistency()
    one.unmask()
    opened = {segment.name: signed(words, segment) for segment, words in one.server.open()}
    assert np.allclose(opened["main"] / (2**15 - 1), sum(TRUE.values()), atol=4 / 2**14)
    value = reported[0][1]
    main, data = next(
        (s, d) for s, d in zip(segments_of(value["table"]), as_bytes(value["segments"]), strict=True) if s.name == "main"
    )
    assert likeness(signed(unpack(data, main), main), 0) < 0.5


def test_bounds_come_from_the_client_s_own_method(liar, params):
    """1e30 to all but one: the others would round to zero."""
    server = liar()
    one = Sum(server, params)
    wide = Work.of(server.agreed, "train", ClientFunction(bounds={"delta": 1e30}), params).task(1, 0, 1)
    one.advertise(task=wide)  # what is signed for this hash does not fit a session with the true one
    assert not one.server._adverts
    two = Sum(server, params, attempt=2, task=wide)
    two.advertise()
    two.share()
    reported = two.masked()
    assert "the task does not match the session's hash" in reasons(reported)
    assert_nothing_learnt(two, reported)
    three = Sum(server, {"message": params, "bounds": {"delta": 1e30}, "function": "train"}, attempt=3)
    three.advertise()
    three.share()
    assert all(why for why, _ in three.masked().values())  # for the installed function that is a message without a sense


def test_another_model_for_each_client(liar, params):
    """The others are given dead units, so that nearly all of the sum would be the victim's."""
    server = liar()
    one = Sum(server, params)
    one.advertise()
    one.share()
    mail = one.server.inbox_for()
    reported = {}
    for client in mail:
        message = params if client == 0 else dead(params)
        reported |= server.ask("masked", message, clients=[client], each={client: mail[client]})
    assert reported[0][0] is None
    assert "sent clients different tasks" in reasons({c: reported[c] for c in (1, 2, 3)})
    one.server.add_masked(0, {**reported[0][1], "segments": as_bytes(reported[0][1]["segments"])})
    assert "1 remaining clients" in reasons(server.ask("consistency", {"alive": [0]}, clients=[0]))
    assert_nothing_learnt(one, reported)


def test_a_session_of_its_own_for_each_client(liar, params):
    """Each gets the hash of its own task: then nobody's keys are signed for the session of the others."""
    server = liar()
    one, other = Sum(server, params), Sum(server, dead(params))
    other.session = other.server.session = dataclasses.replace(one.session, task=other.session.task)
    adverts = {}
    for which, clients in ((one, [0]), (other, [1, 2, 3])):
        reported = server.ask("advertise", which.session.plain(), clients=clients)
        adverts |= {c: value["keys"] for c, (_, value) in reported.items()}
    hashes = {c: hashlib.sha256(a).digest() for c, a in adverts.items()}
    reported = server.ask("share", {"hashes": hashes}, each={c: {v: a for v, a in adverts.items() if v != c} for c in adverts})
    assert "lack a valid signature" in reasons(reported)


@pytest.mark.parametrize("change", [{"round": 2}, {"trial": 1}, {"call": 2}, {"function": "evaluate"}])
def test_a_session_stands_for_one_place_in_the_run(liar, params, change):
    server = liar()
    one = Sum(server, params)
    facts = {**one.session.plain(), **change}
    reported = server.ask("advertise", facts, round=1)
    if "round" in change:
        assert "the session is for round 2" in reasons(reported)
        return
    one.session = one.server.session = dataclasses.replace(one.session, **change)
    for client, (_, value) in reported.items():
        one.server.add_advert(client, value)
    one.share()
    assert "session's hash" in reasons(one.masked())


def rejoin(server, incarnation, name=None):
    """Start the server again, under another run's name if it likes."""
    server.hub.progress.incarnation = incarnation
    server.hub.progress.run = name or server.hub.progress.run
    server.numbers = itertools.count((incarnation << 32) + 1)
    old = list(server.hub.sessions.values())
    for session in old:
        server.loop.call(session.close, grpc.StatusCode.UNAVAILABLE, "started again")
    server.wait(lambda: sum(s.ready and s not in old for s in server.hub.sessions.values()) == 4)


@pytest.mark.parametrize("name", ["lie", "another run"])
def test_the_same_work_is_not_opened_over_one_client_less(liar, params, name):
    """Whatever the server calls run, round and stream: the difference of the two sums would be client 3's update."""
    server = liar()
    Sum(server, params).to_end()
    rejoin(server, 2, name.replace(" ", "-"))
    for number, changes in enumerate(({}, {"round": 2}, {"round": 3, "trial": 7, "call": 5}), 2):
        two = Sum(server, params, attempt=number, **changes).to_masked()
        two.server.alive()
        reported = server.ask("consistency", {"alive": [0, 1, 2]}, clients=[0, 1, 2], round=two.round)
        assert "opened before for other survivors" in reasons(reported)
        server.loop.call(server.hub.again)


def test_a_smaller_cohort_does_not_open_the_same_work(liar, params):
    """The client that is left out has not dropped out; it was never asked."""
    loose = {"gamma": 0.0}
    server = liar(secure=loose)
    Sum(server, params, config=secure_config(loose)).to_end()
    rejoin(server, 2, "smaller")
    two = Sum(server, params, clients=[0, 1, 2], config=secure_config(loose))
    two.advertise()
    two.share()
    assert "opened before for other survivors" in reasons(two.masked())  # before there is a vector that others could open


def test_the_same_survivors_may_be_asked_again(liar, params):
    """A server that died after it opened a sum goes on."""
    server = liar()
    Sum(server, params).to_end()
    rejoin(server, 2)
    reported = Sum(server, params, attempt=2).to_end()
    assert [why for why, _ in reported.values()] == [None] * 4


def test_other_options_over_one_client_less(liar, params, loopback):
    """A learning rate that differs in the seventh digit is other work, but nearly the same update."""
    server = liar()
    Sum(server, params).to_end()
    facts = server.hub.plan
    server.config = server.config.model_copy(update={"options": {"lr": 0.0100001}})
    server.agreed = Agreement.of(server.config, find_method("fedavg"))
    server.hub.plan = server.offer()
    assert server.hub.plan != facts
    rejoin(server, 1, "other-options")
    two = Sum(server, params).to_masked()
    two.server.alive()
    reported = server.ask("consistency", {"alive": [0, 1, 2]}, clients=[0, 1, 2])
    assert "differs in 1 clients; the minimum is 3" in reasons(reported)


@pytest.mark.parametrize("shaped", [True, False])
def test_a_reason_holds_no_value(liar, params, loopback, monkeypatch, shaped):
    """An overflow names the client's loss, with all its digits, in its own log only.

    Where the shape of a reply is known, nobody even sees that there is a reason; where it is not, the function does not run.
    """
    server = liar()

    def overflow(*args):
        raise SumOverflowError("the number 123.456789 is too large")

    monkeypatch.setattr("paceline.aggregation.secure.codec.Codec.encode", overflow)
    if not shaped:
        monkeypatch.setattr("paceline.engines.worker.preview", lambda *args: None)
    one = Sum(server, params)
    one.advertise()
    one.share()
    reported = one.masked()
    if shaped:
        assert [why for why, _ in reported.values()] == [None] * 4
        assert all("123.456789" in server.logged(client)[0] for client in server.clients)
    else:
        assert "the shape of the replies of 'train' is unknown" in reasons(reported)
        assert "123.456789" not in reasons(reported)
    assert all(head["dropped"] == (None if shaped else HIDDEN) for head in server.heads.values())
    assert "123" not in repr(server.heads)


def test_no_time_and_no_size_of_data_leaves(liar, params):
    """The heads of all clients are equal, though one has three times the samples of another; and a deadline tells nothing."""
    server = liar(partition="quantity:0.5", allow_empty=True)
    one = Sum(server, params)
    one.advertise()
    one.share()
    reported = one.masked(deadline=1e-12)
    assert [why for why, _ in reported.values()] == [None] * 4
    heads = [{k: v for k, v in head.items() if k != "id"} for head in server.heads.values()]
    assert all(head == heads[0] for head in heads)
    assert heads[0]["compute"] == heads[0]["network"] == heads[0]["seconds"] == 0.0
    assert heads[0]["trained"] is False
    assert len({sum(len(d) for d in as_bytes(value["segments"])) for _, value in reported.values()}) == 1


@pytest.mark.parametrize(
    "options",
    [{"sigma": 1}, {"complete_up_to": 0, "neighbours": 2, "threshold": 2}, {"threshold": 2}, {"gamma": 0.05}],
    ids=str,
)
def test_a_plan_cannot_undo_the_floors_of_a_policy(liar, options):
    server = liar(policy="", secure=options)
    assert len(server.hub.dispatcher.refusals) == 4
    assert "secure_aggregation" in server.hub.dispatcher.refusals[0]


def test_work_that_is_only_begun_is_not_taken(liar, params):
    """Each client would begin with a message of its own, which no session binds; the sum of what is handed over hides it."""
    server = liar(method="fedbuff", policy=STRICT.replace("gamma = 0.0", "gamma = 0.0\nnamed_clients = true"))
    assert "begun_work" in reasons(server.ask("train", params, "method", kind="held"))
