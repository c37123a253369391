"""What a client's data may change of what leaves it unmasked in a secure sum: no error, no size, no absence."""

import dataclasses

import numpy as np
import pytest

from paceline.aggregation.secure.encoding import signed
from paceline.core.errors import DataFormatError, EmptyClientError, NonFiniteError, QuorumError
from paceline.core.failures import DECLINED, Declined
from paceline.core.layout import Layout
from paceline.core.update import Update
from paceline.deploy.client.client import build_worker
from paceline.deploy.plan import Plan, offer
from paceline.deploy.settings import DataConfig
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.network.handshake import HIDDEN, Welcome
from paceline.registry import find_method
from paceline.run import RunConfig
from tests.network.liar import reasons
from tests.network.partial import OPTIONS, Failing, Partial, fail_on, has

ERRORS = [NonFiniteError("the training loss is nan after 5 steps"), EmptyClientError("no samples"), RuntimeError("class 7 of 3")]


def look_alike(server, reported):
    """Assert that nothing but masked words differs between the replies."""
    heads = [{k: v for k, v in head.items() if k != "id"} for head in server.heads.values()]
    assert all(head == heads[0] for head in heads)
    seen = [(sorted(v), v["shape"], v["table"], [len(s) for s in v["segments"]]) for _, v in reported.values()]
    assert all(one == seen[0] for one in seen)


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_client_whose_data_make_it_fail_cannot_be_told_from_the_others(liar, params, loopback, monkeypatch, error):
    """Each refusal would be an answer to a question about one client's data, and nothing that is not opened is counted."""
    server = liar(secure=OPTIONS)
    failing = Failing(monkeypatch, {2}, error)
    one = Partial(server, params, [0, 1, 2, 3], 1)
    one.advertise()
    one.share()
    reported = one.masked()
    assert [why for why, _ in reported.values()] == [None] * 4
    look_alike(server, reported)
    one.consistency()
    one.unmask()
    sums = {s.name: signed(w, s) for s, w in one.server.open()}
    others = sum(u for c, u in failing.updates.items() if c != 2)
    assert np.allclose(sums["main"] / (2**15 - 1), others, atol=4 / 2**14)
    assert sums["counts"][0] == 3
    assert sums["exact"][-1] % 2**20 == 1
    assert [type(error).__name__ in text for text in server.logged(2)] == [True]


@pytest.mark.parametrize("method", ["fedavg", "fjord", "clip"])
def test_a_client_that_fails_on_each_of_its_samples_cannot_be_told_from_the_others(liar, params, loopback, monkeypatch, method):
    """Nor in the next rounds, for which it prepares keys, with the record of a client that has not trained."""
    server = liar(method=method, measured=True, secure=OPTIONS)
    fail_on(monkeypatch, find_method(method), "train", loopback.task.train.x[0], ERRORS[0])
    [failing] = [c for c, node in loopback.nodes.items() if 0 in node.runner.worker.setup.split(c)[0]]
    coming = None
    for round in (1, 2, 3):
        one = Partial(server, params, [0, 1, 2, 3], 0 if coming else 1, round=round)
        reported, coming = one.go_on(coming)
        assert [why for why, _ in reported.values()] == [None] * 4
        look_alike(server, reported)
        assert coming.complete()
        assert len({(len(own["told"][c]), len(own["sealed"][c])) for own in coming.mail.values() for c in own["told"]}) == 1
        sums = {s.name: signed(w, s) for s, w in one.server.open()}
        assert (sums["counts"][0] > 0, sums["exact"][-1] % 2**20) == (True, 1)
        assert [len(server.logged(c)) for c in range(4)] == [round * (c == failing) for c in range(4)]
        server.loop.call(server.hub.completed, round, dict.fromkeys(range(4), ()), lambda c, now=round: committed(now))


@pytest.mark.parametrize("size", [0, 3, 17])
def test_a_size_of_records_that_only_an_empty_one_fits_into_tells_nothing(liar, params, loopback, monkeypatch, size):
    """The server chooses the size; clients without samples have an empty record."""
    server = liar(method="fjord", measured=True, secure=OPTIONS)
    fail_on(monkeypatch, find_method("fjord"), "train", loopback.task.train.x[0], ERRORS[0])
    assert Partial(server, params, [0, 1, 2, 3], 1).go() is not None
    server.loop.call(server.hub.completed, 1, dict.fromkeys(range(4), ()), lambda c: committed(1))
    two = Partial(server, params, [0, 1, 2, 3], 1, round=2)
    two.session = two.server.session = dataclasses.replace(two.session, tell_bytes=size)
    two.advertise()
    assert [why for why, _ in two.share().values()] == [None] * 4


def test_a_record_that_cannot_be_formed_is_empty_for_the_others(liar, params, loopback, monkeypatch):
    server = liar(method="fjord", measured=True, secure=OPTIONS)
    fail_on(monkeypatch, find_method("fjord"), "report", loopback.task.train.x[0], ERRORS[0])
    one = Partial(server, params, [0, 1, 2, 3], 1)
    one.advertise()
    reported = one.share()
    assert [why for why, _ in reported.values()] == [None] * 4
    assert len({len(told) for _, value in reported.values() for told in value["told"].values()}) == 1
    _, coming = Partial(server, params, [0, 1, 2, 3], 2).go_on()
    assert coming.complete()
    assert len({len(told) for own in coming.mail.values() for told in own["told"].values()}) == 1


def test_a_client_that_will_sit_out_prepares_like_the_others(liar, params, loopback, monkeypatch):
    """Whether it will may depend on the training, of which nothing tells before the round is over; then it is a drop-out."""
    server = liar(method="fjord", measured=True, secure=OPTIONS)
    method, sample = find_method("fjord"), loopback.task.train.x[0]
    real = method.report

    def report(program, client, message):
        if client.round == 2 and has(client, sample):
            raise Declined
        return real(program, client, message)

    report.__client__ = real.__client__
    monkeypatch.setattr(method, "report", report)
    [resting] = [c for c, node in loopback.nodes.items() if 0 in node.runner.worker.setup.split(c)[0]]
    _, coming = Partial(server, params, [0, 1, 2, 3], 1).go_on()
    assert coming.complete()
    assert len({(len(own["told"][c]), len(own["sealed"][c])) for own in coming.mail.values() for c in own["told"]}) == 1
    server.loop.call(server.hub.completed, 1, dict.fromkeys(range(4), ()), lambda c: committed(1))
    two = Partial(server, params, [0, 1, 2, 3], 0, round=2)
    mail = {c: {**own, "prepared": {"function": "train", "task": two.session.task}} for c, own in coming.mail.items()}
    reported = server.ask("masked", params, each=mail, round=2, open=(None, DECLINED))
    assert {c: why for c, (why, _) in reported.items() if why} == {resting: DECLINED}


def committed(round):
    """Return what clients are told of a round that is over."""
    return {"round": round, "saved": 0, "kept": True, "took": 0.0, "lost": []}


def test_a_reply_of_another_shape_is_left_out_and_not_shown(liar, params, loopback, monkeypatch):
    """A shape that depends on a client's data would tell the server of them."""
    server = liar(secure=OPTIONS)
    real, sample = FedAvg.train, loopback.task.train.x[0]

    def train(program, client, message):
        reply = real(program, client, message)
        return Update(**reply.fields, more=1.0, weight=reply.weight) if has(client, sample) else reply

    train.__client__ = real.__client__
    monkeypatch.setattr(FedAvg, "train", train)
    one = Partial(server, params, [0, 1, 2, 3], 1)
    one.advertise()
    one.share()
    look_alike(server, one.masked())
    [(client, why)] = [(c, why) for c in range(4) for why in server.logged(c)]
    assert "another shape" in why
    assert 0 in loopback.nodes[client].runner.worker.setup.split(client)[0]


@pytest.mark.parametrize("method", ["fjord", "clip", "saliency"])
def test_a_record_for_other_clients_is_not_summed(liar, params, method):
    """It is empty for whoever has no samples, or failed in the round before, and its shape would be sent unmasked."""
    server = liar(method=method, measured=True, secure=OPTIONS)
    assert "its replies cannot be summed" in reasons(Partial(server, None, [0, 1, 2, 3], 1, function="report").advertise())


def test_a_run_in_which_nobody_can_work_ends_and_says_so(loopback, monkeypatch):
    Failing(monkeypatch, set(range(6)), ERRORS[0])
    loopback.serve({"clients": 6, "cohort": 6, "rounds": 2, "aggregation": "secure", "secure": OPTIONS})
    for client in range(6):
        loopback.client(client)
    with pytest.raises(QuorumError, match="'train' failed on all"):
        loopback.result.result(30)


def test_one_client_that_cannot_work_harms_nobody(loopback, monkeypatch):
    Failing(monkeypatch, {5}, ERRORS[0])
    loopback.serve({"clients": 6, "cohort": 6, "rounds": 2, "aggregation": "secure", "secure": OPTIONS})
    for client in range(6):
        loopback.client(client)
    history = loopback.finish().history
    assert [(r["attempts"], r["note_failed"]) for r in history] == [(1, 1.0)] * 2


def test_what_a_failed_function_noted_is_forgotten(loopback, monkeypatch):
    """The control of a reply that no sum holds, which may be NaN, would go into all later ones."""
    Failing(monkeypatch, {5}, ERRORS[0])
    loopback.serve({"method": "scaffold", "clients": 6, "cohort": 6, "rounds": 1, "aggregation": "secure", "secure": OPTIONS})
    for client in range(6):
        loopback.client(client)
    loopback.finish()
    kept = {c: set(node.runner.worker.memories[c].stored) - {"_secagg"} for c, node in loopback.nodes.items()}
    assert kept[5] == set()
    assert all(kept[c] for c in range(5))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 0.999999])
def test_whether_a_client_takes_part_does_not_tell_how_many_samples_it_has(loopback, share):
    """The server chooses what is set aside; with a search it would find the number."""
    joined = []
    for samples in (1, 2, 60):
        few = dataclasses.replace(loopback.task.train, x=loopback.task.train.x[:samples], y=loopback.task.train.y[:samples])
        task = dataclasses.replace(loopback.task, train=few)
        config = RunConfig(method="fedavg", task="blobs", clients=4, cohort=4, aggregation="secure", client_test=share)
        facts = offer(config, Plan.of(config), Layout.of(task.build(0)))
        worker = build_worker(DataConfig(), 0, None, task=task)(Welcome("probe", 1, 0, 0, 0, 0, 0, (), facts, 1.0))
        joined.append(len(worker.setup.split(0)[0]))
    assert min(joined) >= 1


def test_what_is_wrong_with_a_client_s_data_stays_in_its_own_log(loopback, monkeypatch):
    def load(*args, **options):
        raise DataFormatError("line 7: 'Jane Doe, HIV positive' is no number")

    monkeypatch.setattr("paceline.assembly.load_task", load)
    run = {"clients": 3, "cohort": 3, "aggregation": "secure", "secure": OPTIONS}
    loopback.serve(run, {"least": 3})
    loopback.task = None  # the client reads its own
    loopback.client(0)
    loopback.wait(lambda: loopback.server_lines.of("refused_by_client"))
    assert loopback.server_lines.of("refused_by_client")[0]["reasons"] == [HIDDEN]
    assert "Jane Doe" in loopback.client_lines.of("refused")[0]["why"]


def test_how_own_files_are_read_is_not_the_server_s_to_say():
    from paceline.deploy.client.own import task_options

    config = RunConfig(
        task="csv:/public.csv", model="mlp", task_options={"target": "hiv", "limit": 1, "test": 0.99, "peft": "bias"}
    )
    assert task_options(DataConfig(task="csv:/own.csv"), config) == {"peft": "bias"}
    assert task_options(DataConfig(task="csv:/own.csv", task_options={"target": "num"}), config) == {
        "peft": "bias",
        "target": "num",
    }
    assert task_options(DataConfig(own=False), config) == config.task_options
