"""Attacks on keys that are exchanged one round ahead: a hostile server, a hostile client, and what remains of old keys."""

import dataclasses
import gc
import hashlib
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from paceline.aggregation.secure.client import SecureClient
from paceline.aggregation.secure.client_functions import SecAggClient
from paceline.aggregation.secure.client_openings import Openings
from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.keys import AgreementKey
from paceline.aggregation.secure.preparation import Preparation
from paceline.aggregation.secure.session import new_session
from paceline.core.engine import ClientFunction, Each
from paceline.core.errors import ProtocolError
from paceline.core.protocol import ProtocolSession
from paceline.run import prepare
from tests.aggregation.secure.test_preparation import EIGHT, FIVE, LOOSE, Watch, arithmetic, parties, ready_one, second, task_of
from tests.conftest import make_task

__all__ = ["second"]

ONE, TWO = bytes([1]) * 32, bytes([2]) * 32


def again(clients, **changes):
    """Return the machines of another preparation, under the same long-lived keys; without changes it has the same id."""
    return {c: SecureClient(c, dataclasses.replace(m.session, **changes), m.identity, m.directory) for c, m in clients.items()}


# -- preparations that are replayed or differ ------------------------------------------------------
def test_keys_of_an_earlier_preparation_with_the_same_id_are_refused():
    """Their signatures are valid, because id and round are the same, but each client knows its own keys."""
    now, first = parties()
    old, later = ready_one(now, first), again(first)
    own = {c: m.advertise()["keys"] for c, m in later.items()}
    for c in range(4):
        directory = old.directory_for(c)
        with pytest.raises(ProtocolError, match="other keys for this client"):
            later[c].share(directory["hashes"], directory["adverts"])
    for c in range(4, 8):
        directory = old.directory_for(c)
        later[c].share({**directory["hashes"], c: hashlib.sha256(own[c]).digest()}, directory["adverts"])
    assert len({later[c]._graph for c in range(4, 8)}) == 4  # part of the list of survivors, which no two of them sign alike


def test_two_halves_with_different_ids_do_not_share_secrets():
    now, clients = parties()
    clients |= {c: m for c, m in again(clients, id=bytes([9]) * 32).items() if c > 3}
    coming = ready_one_of(now, clients)
    assert sorted(coming.server.refused) == [4, 5, 6, 7]
    assert coming.directory_for(0) is None
    adverts = {c: m._advert for c, m in clients.items()}
    hashes = {c: hashlib.sha256(advert).digest() for c, advert in adverts.items()}
    for c, machine in clients.items():
        with pytest.raises(ProtocolError, match="lack a valid signature"):
            machine.share(hashes, {v: advert for v, advert in adverts.items() if v != c})


def ready_one_of(now, clients):
    coming = Preparation(now)
    coming.server.session = dataclasses.replace(coming.server.session, id=bytes([7]) * 32)
    for c, machine in clients.items():
        coming.add_advert(c, machine.advertise())
    return coming


def test_shares_of_an_earlier_preparation_are_not_accepted_in_place_of_the_new_ones():
    now, first = parties()
    old, new = {}, {}
    ready_one(now, first, sealed=old)
    later = again(first)
    ready_one(now, later, sealed=new)
    mail = {v: (old if v == 3 else new)[v]["sealed"][0] for v in range(1, 8)}
    machine = later[0]
    machine.bind(ONE)
    machine.receive(mail, {v: (old if v == 3 else new)[v]["told"][0] for v in mail})
    assert machine.accused == [3]
    with pytest.raises(ProtocolError, match="cannot be decrypted"):
        machine.masked([(Segment("main", 2, 24), np.ones(2, Segment("main", 2, 24).dtype))])


def member(client=0, function="train"):
    """Return a client's functions of the protocol, what they get, and its session of round 1."""
    now, clients = parties()
    machine = clients[client]
    directory = SimpleNamespace(identity=lambda _: machine.identity, publics=lambda ids: {c: machine.directory[c] for c in ids})
    me = SimpleNamespace(
        client=SimpleNamespace(id=client, round=2, memory={}),
        session=ProtocolSession(),
        functions={function: ClientFunction()},
    )
    return SecAggClient(directory), me, now, clients


def test_a_second_preparation_in_a_round_replaces_the_first():
    program, me, now, clients = member()
    advert = program._advertised(me, now.session, bytes([7]) * 32)["keys"]
    clients[0] = me.session.coming["train"]
    clients[0]._step = 0  # `ready_one` asks for the keys itself
    old = ready_one(now, clients).directory_for(0)
    assert program._advertised(me, now.session, bytes([7]) * 32)["keys"] != advert
    with pytest.raises(ProtocolError, match="other keys for this client"):
        program._shared(me, "train", old)
    assert not me.session.coming  # a violation ends the preparation
    with pytest.raises(ProtocolError, match="no session"):
        program._shared(me, "train", old)


def test_shares_are_sealed_once_for_each_preparation():
    program, me, now, clients = member()
    program._advertised(me, now.session, bytes([7]) * 32)
    clients[0] = me.session.coming["train"]
    clients[0]._step = 0
    coming = ready_one(now, clients)
    with pytest.raises(ProtocolError, match="answered once"):
        program._shared(me, "train", coming.directory_for(0))
    assert not me.session.coming


# -- a round that is aborted after its masks ---------------------------------------------------------
def call(run, step, message, clients, each=None):
    receipts, _ = run.fed.call(step, message, list(clients), Each(), program="secagg", **({"each_message": each} if each else {}))
    return {r.client: (r.dropped, r.value) for r in receipts}


def signed(run, alive, clients=None):
    """Request signatures of a list of survivors; return them for each client as its neighbours' ones."""
    answers = call(run, "consistency", {"alive": alive}, alive if clients is None else clients)
    signatures = {c: value["signature"] for c, (why, value) in answers.items() if why is None}
    return answers, {c: {v: s for v, s in signatures.items() if v != c} for c in signatures}


def test_survivors_and_shares_of_a_prepared_session_are_fixed_once(second):
    run, _, ask = second
    ask()
    _, near = signed(run, list(range(8)))
    assert len(near) == 8
    answers, _ = signed(run, list(range(7)))
    assert all("answered once" in why for why, _ in answers.values())
    answers = call(run, "unmask", None, range(7), near)  # the sessions are discarded
    assert all("discarded" in why for why, _ in answers.values())


def test_shares_are_not_sent_for_another_list_of_survivors_in_a_second_request(second):
    run, _, ask = second
    ask()
    _, near = signed(run, list(range(8)))
    answers = call(run, "unmask", None, range(8), near)
    assert all(why is None and len(value["self"]) == 7 and not value["keys"] for why, value in answers.values())
    for step, message, each in (("unmask", None, near), ("consistency", {"alive": list(range(7))}, None)):
        assert all("no open session" in why for why, _ in call(run, step, message, range(8), each).values())
    answers = ask(clients=range(7))
    assert all(value == {"unprepared": 1} for _, value in answers.values())


def test_masks_of_an_aborted_prepared_session_are_never_opened_by_the_session_after_it(second):
    """The server has the masked vectors, and begins a session of five exchanges for the same work with one client less."""
    run, _, ask = second
    ask()
    session = dataclasses.replace(
        new_session(range(7), SecureConfig(**LOOSE), 2, 5), function="train", task=task_of(run, run.state.params)
    )
    assert all(why is None for why, _ in call(run, "advertise", session.plain(), range(7)).values())
    for step, message in (("consistency", {"alive": list(range(8))}), ("unmask", None)):
        answers = call(run, step, message, range(7), {c: {} for c in range(7)} if step == "unmask" else None)
        assert all(why for why, _ in answers.values())


def test_work_opened_in_a_prepared_session_is_not_opened_for_others(second):
    """The record of opened sums holds for prepared sessions, and across the way in which keys were exchanged."""
    run, ready, ask = second
    run.fed.engine.here.setup.programs["secagg"].openings = Openings()
    assert all("segments" in value for _, value in ask().values())
    _, near = signed(run, list(range(8)))
    assert all(why is None for why, _ in call(run, "unmask", None, range(8), near).values())
    session = dataclasses.replace(
        new_session(range(7), SecureConfig(**LOOSE), 2, 5), function="train", task=task_of(run, run.state.params)
    )
    server = type(ready.server)(session, {c: k for c, k in ready.server.directory.items() if c < 7})
    for c, (_, value) in call(run, "advertise", session.plain(), range(7)).items():
        server.add_advert(c, value)
    hashes, adverts = server.directory_for()
    for c, (_, value) in call(run, "share", {"hashes": hashes}, range(7), adverts).items():
        server.add_shares(c, value)
    answers = call(run, "masked", run.state.params, range(7), server.inbox_for())
    assert all("opened before for other survivors" in why for why, _ in answers.values())


# -- clients ---------------------------------------------------------------------------------------
def test_a_client_that_never_has_its_keys_costs_ever_fewer_exchanges(federate, monkeypatch):
    """It says so each time; the bits are those of any run, and preparations become rare."""
    real = SecAggClient._ready
    monkeypatch.setattr(SecAggClient, "_ready", lambda self, me, named: me.client.id != 2 and real(self, me, named))
    watch, common = Watch(), {**EIGHT, "rounds": 7}
    summary = federate(aggregation="secure", drop=watch, **common)
    assert [len(watch.steps[r]) for r in range(1, 8)] == [5, 6, 5, 6, 5, 5, 6]
    assert all(steps[-5:] == FIVE for steps in watch.steps.values())
    assert summary.model_sha256 == arithmetic(federate, **common)


# -- forward secrecy -------------------------------------------------------------------------------
def test_keys_of_a_finished_round_are_gone(config, monkeypatch):
    """All that remains in memory after a round is what was prepared for the next one."""
    machines, keys, generate, init = weakref.WeakSet(), weakref.WeakSet(), AgreementKey.generate, SecureClient.__init__
    monkeypatch.setattr(SecureClient, "__hash__", object.__hash__)
    monkeypatch.setattr(AgreementKey, "generate", staticmethod(lambda: keys.add(key := generate()) or key))
    monkeypatch.setattr(SecureClient, "__init__", lambda self, *a, **k: init(self, *a, **k) or machines.add(self))
    run = prepare(config(aggregation="secure", **EIGHT), task=make_task())
    for round in (1, 2, 3):
        run.step()
        gc.collect()
        assert sorted((m.session.round, m.me) for m in machines) == [(round + 1, c) for c in range(8)]
        assert {k.public for k in keys} == {k.public for m in machines for k in (m._seal_key, m._mask_key)}
    run.fed.engine.rollback()
    gc.collect()
    assert not machines
    assert not keys
    run.close()


def test_the_end_of_a_round_keeps_what_was_prepared_for_the_next_one_only():
    session = ProtocolSession(state="of this round", failed="why", ready={"unused": 1, "train": 2}, coming={"train": 3})
    assert session.end_round()
    assert session == ProtocolSession(ready={"train": 3})
    assert not session.end_round()
    assert session == ProtocolSession()


def test_work_for_later_is_done_once_and_its_error_is_raised_where_the_result_is_used():
    session, done = ProtocolSession(later=lambda: done.append(1) or len(done)), []
    session.idle()
    session.idle()
    assert (session.result(), session.result(), done) == (1, None, [1])
    session.later = lambda: done.append(1) or len(done)
    assert session.result() == 2  # nothing was done before
    session.later = lambda: 1 / 0
    session.idle()
    with pytest.raises(ZeroDivisionError):
        session.result()
    assert session.result() is None
    for done_before in (False, True):
        session.later = lambda: 3
        if done_before:
            session.idle()
        session.end_round()
        assert session.result() is None


def test_a_burnt_machine_holds_no_secret():
    now, clients = parties()
    sealed = {}
    ready_one(now, clients, sealed=sealed)
    machine = clients[0]
    machine.bind(ONE)
    machine.receive({v: sealed[v]["sealed"][0] for v in range(1, 8)}, {v: sealed[v]["told"][0] for v in range(1, 8)})
    secrets = {machine._seal_key.to_bytes(), machine._mask_key.to_bytes(), machine._secret, *machine._agreed.values()}
    secrets |= {share for pair in machine._shares.values() for share in pair}
    assert len(secrets) == 3 + 14 + 14
    with pytest.raises(ProtocolError):
        machine.bind(TWO)
    assert not any(secret in repr(machine.state()).encode() or secret in _bytes(vars(machine)) for secret in secrets)


def _bytes(value):
    """Return all bytes in an object's attributes, in a row."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, AgreementKey):
        return value.to_bytes()
    if isinstance(value, dict):
        return b"|".join(map(_bytes, value.values()))
    if isinstance(value, list | tuple):
        return b"|".join(map(_bytes, value))
    return b""
