"""Keys and shares exchanged one round ahead: three exchanges, the same bits, and nothing that serves two purposes."""

import dataclasses
import logging
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.aggregation.secure import client_functions
from paceline.aggregation.secure.client import SecureClient
from paceline.aggregation.secure.client_functions import SecAggClient
from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.keys import IdentityKey
from paceline.aggregation.secure.preparation import Preparation, Preparations
from paceline.aggregation.secure.server import SecureServer
from paceline.aggregation.secure.session import new_session
from paceline.core.engine import Each
from paceline.core.errors import ProtocolError, QuorumError
from paceline.core.method import on_client
from paceline.core.protocol import ProtocolSession
from paceline.core.update import Update
from paceline.methods.optimisation.fedavg import FedAvg
from paceline.methods.stragglers.fjord import Fjord
from paceline.methods.stragglers.selfpruning import NESTING
from paceline.run import prepare, resume
from paceline.store import RunFolder
from tests.conftest import make_task

FIVE = ["advertise", "share", "masked", "consistency", "unmask"]
THREE = FIVE[2:]
LOOSE = {"threshold": 5, "gamma": 0.05}
EIGHT = {"clients": 8, "cohort": 8, "rounds": 4, "on_error": "drop", "secure": LOOSE}


class Watch:
    """Notes the steps of each round, and drops clients where told."""

    def __init__(self, lost=()):
        self.steps, self.lost = defaultdict(list), set(lost)

    def __call__(self, round, client, function):
        step = function.removeprefix("secagg.")
        if step in FIVE and (not self.steps[round] or self.steps[round][-1] != step):
            self.steps[round].append(step)
        return (round, client, step) in self.lost

    @property
    def lengths(self):
        return [len(self.steps[round]) for round in sorted(self.steps)]


def arithmetic(federate, lost=(), **common):
    """Return the bits without masks: who sends no vector drops out."""
    gone = {(round, client) for round, client, step in lost if step == "masked"}
    return federate(aggregation="secure-arithmetic", drop=lambda r, c, f: (r, c) in gone and f == "train", **common).model_sha256


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
def test_all_rounds_but_the_first_take_three_exchanges_and_end_with_the_same_bits(federate, method, workers):
    common = {**EIGHT, "method": method, "fleet": "stragglers:share=0.2,slow=3"}
    watch = Watch()
    ahead = federate(aggregation="secure", workers=workers, drop=watch if workers == 1 else None, **common)
    now = federate(aggregation="secure", **{**common, "secure": {**LOOSE, "pipelined": False}})
    assert ahead.model_sha256 == now.model_sha256 == arithmetic(federate, **common)
    assert ahead.history[-1]["virtual_seconds"] < now.history[-1]["virtual_seconds"]
    assert workers > 1 or [watch.steps[r] for r in (1, 2, 3, 4)] == [FIVE, THREE, THREE, THREE]


def test_the_option_switches_it_off(federate):
    watch = Watch()
    federate(aggregation="secure", drop=watch, **{**EIGHT, "secure": {**LOOSE, "pipelined": False}})
    assert watch.lengths == [5] * 4


@pytest.fixture
def reasons(caplog):
    """Return a function that returns, by round, why sums of a function took five exchanges, and forgets it."""
    caplog.set_level(logging.INFO, logger="paceline")

    def read(function="train"):
        logged = [r.args for r in caplog.records if r.name.endswith("preparation") and r.levelno == logging.INFO]
        caplog.clear()
        assert all(isinstance(round, int) for round, *_ in logged)
        return {round: why for round, name, why in logged if name == function}

    return read


def test_each_sum_of_five_exchanges_is_logged_with_its_reason(federate, reasons):
    """A client lost while keys are prepared, one between preparation and use, and a repeated round."""
    lost = {(1, 2, "masked"), (3, 4, "unmask")} | {(6, c, "masked") for c in range(5)}

    class Once(Watch):
        def __call__(self, round, client, function):
            gone = super().__call__(round, client, function)
            self.lost.discard((round, client, function.removeprefix("secagg.")))
            return gone

    watch = Once(lost)
    federate(aggregation="secure", drop=watch, **{**EIGHT, "rounds": 7})
    why = reasons()
    assert set(why) == {round for round, steps in watch.steps.items() if "advertise" in steps} == {1, 2, 4, 6}
    assert "in the round before" in why[1]
    assert why[2] == "the keys of clients [2] did not arrive in the round before"
    assert why[4] == "the shares of clients [4] did not arrive in the round before"
    assert why[6] == "the round is repeated"
    federate(aggregation="secure", **{**EIGHT, "secure": {**LOOSE, "pipelined": False}})
    assert not reasons()


class Twice(FedAvg):
    """Sums the same function twice in a round."""

    def round(self, fed, state):
        for cohort in (fed.sample(6), fed.sample(6)):
            mean = fed.mean(self.train, state.params, over=cohort)
            state = replace(state, params=state.params + mean.delta)
        return state


def test_sums_that_are_not_prepared_are_logged_too(federate, reasons):
    federate(aggregation="secure", **{**EIGHT, "rounds": 2, "method": f"{__name__}:Twice"})
    why = reasons()
    assert why[1] == why[2] == "it is sum 2 of this function in the round, and only the first one is prepared"


PARTS = {
    **EIGHT,
    "rounds": 8,
    "fleet": "stragglers:share=0.34,slow=3,compute=1e5",
    "secure": {**LOOSE, "least_contributors": 2},
    "options": {"segmented": True, "straggler_share": 0.34, "warmup": 1},
}


@dataclasses.dataclass(frozen=True)
class Halves(Fjord):
    """From round 5 on three clients train half of the units. Counts in memory how often the tier was requested."""

    def tier(self, client, message):
        client.memory["asked"] = client.memory.get("asked", 0) + 1
        return client.assigned([0.5, 1.0, 1.0]) if client.round >= 5 else 1.0

    @on_client(nested=NESTING)
    def train_part(self, client, message):
        reply = super().train_part(client, message)
        return Update(delta=reply.delta * (1.0 + 0.1 * client.memory["asked"]), kept=reply.kept, weight=reply.weight)


@pytest.fixture
def soon(monkeypatch):
    """Let clients prepare sums over parts of a model once they have declared the same tier in two rounds."""
    monkeypatch.setattr(client_functions, "STEADY", 2)


def test_sums_over_parts_of_a_model_take_three_exchanges_while_no_tier_changes(federate, reasons, soon):
    """The bits are those of sums without masks.

    A tier that has changed is declared anew, and the first try leaves no trace.
    """
    watch, common = Watch(), {**PARTS, "method": f"{__name__}:Halves"}
    ahead = federate(aggregation="secure", drop=watch, **common)
    assert watch.lengths == [5, 5, 3, 3, 6, 5, 3, 3]
    why = reasons("train_part")
    assert "keys of clients" in why[2]
    assert "another tier" in why[5]
    assert ahead.model_sha256 == arithmetic(federate, **common)


LOST = st.sets(st.tuples(st.integers(1, 4), st.integers(0, 7), st.sampled_from(THREE)), max_size=6)


def test_random_drop_outs_in_every_step_open_the_sum_of_the_survivors(federate):
    """A client lost while keys are prepared, or between preparation and use, or later."""
    seen = set()

    @settings(max_examples=6, deadline=None, derandomize=True)
    @given(LOST)
    def check(drawn):
        lost = {(r, c, s) for r, c, s in drawn if c in sorted({x for q, x, _ in drawn if q == r})[:2]}  # at most two in a round
        watch = Watch(lost)
        summary = federate(aggregation="secure", drop=watch, **EIGHT)
        assert [r["attempts"] for r in summary.history] == [1] * 4
        assert summary.model_sha256 == arithmetic(federate, lost, **EIGHT)
        for round in (1, 2, 3):
            missing = any(r == round for r, _, _ in lost)  # then the next round's keys are incomplete
            assert not missing or watch.lengths[round] == 5
        seen.update(watch.lengths[1:])

    check()
    assert seen == {3, 5}


def test_a_client_that_vanishes_between_preparation_and_use_is_an_ordinary_drop_out(federate):
    lost = {(3, 2, "masked"), (3, 5, "masked")}
    watch = Watch(lost)
    summary = federate(aggregation="secure", drop=watch, **EIGHT)
    assert watch.lengths[:4] == [5, 3, 3, 5]
    assert summary.history[2]["dropped"] == 2
    assert summary.model_sha256 == arithmetic(federate, lost, **EIGHT)


def test_a_lost_round_burns_what_was_prepared(federate):
    """Five of eight vanish in round 3, too many; its second attempt takes new keys."""
    left = {(3, c, "masked") for c in range(5)}

    class Once(Watch):
        def __call__(self, round, client, function):
            gone = super().__call__(round, client, function)
            left.discard((round, client, function.removeprefix("secagg.")))
            self.lost = set(left)
            return gone

    watch = Once(left)
    summary = federate(aggregation="secure", drop=watch, **EIGHT)
    assert [r["attempts"] for r in summary.history] == [1, 1, 2, 1]
    assert watch.steps[3] == ["masked", *FIVE]


class Counts(FedAvg):
    """Stores in memory how often it has trained."""

    @on_client
    def train(self, client, message):
        client.memory["trained"] = count = client.memory.get("trained", 0) + 1
        return Update(delta=(client.sgd(message).params - message) * (1.0 + 0.1 * count), weight=client.num_samples)


def test_keys_lost_by_a_client_are_exchanged_anew_and_change_no_bits(federate, monkeypatch, reasons):
    """As after a restart of the client: it says so, and the same attempt goes on with five exchanges.

    The others train twice, the second time with their memory as of before the first.
    """
    real, turns = ProtocolSession.end_round, []

    def forgetful(session):
        turns.append(session)
        kept = real(session)
        if len(turns) == 3:  # of one client, after round 1
            session.ready.clear()
        return kept

    monkeypatch.setattr(ProtocolSession, "end_round", forgetful)
    watch = Watch()
    for method in (f"{__name__}:Counts", "scaffold"):
        turns.clear()
        watch = Watch()
        summary = federate(aggregation="secure", drop=watch, method=method, **EIGHT)
        assert watch.steps[2] == ["masked", *FIVE]
        assert watch.lengths == [5, 6, 5, 3]
        assert reasons()[2] == "clients [2] lost the keys that were prepared for it, or would declare another tier now"
        assert [r["attempts"] for r in summary.history] == [1] * 4
        assert not any("lost" in r for r in summary.history)
        assert summary.model_sha256 == arithmetic(federate, method=method, **EIGHT)


class Draws(FedAvg):
    """Draws another cohort after a sum over all clients."""

    def round(self, fed, state):
        mean = fed.mean(self.train, state.params, over=range(fed.num_clients))
        again = fed.mean(self.train, state.params + mean.delta, over=fed.sample(6))
        return replace(state, params=state.params + again.delta)


def test_cohorts_do_not_depend_on_how_many_exchanges_a_sum_took(federate, monkeypatch):
    common = {**EIGHT, "method": f"{__name__}:Draws", "aggregation": "secure"}
    expected = federate(**{**common, "secure": {**LOOSE, "pipelined": False}}).model_sha256
    assert federate(**common).model_sha256 == expected
    real = SecAggClient._ready
    monkeypatch.setattr(SecAggClient, "_ready", lambda self, me, named: me.client.round != 3 and real(self, me, named))
    assert federate(**common).model_sha256 == expected


def test_a_resumed_run_exchanges_new_keys_and_ends_with_the_same_bits(federate, task, config, tmp_path):
    """What was prepared is in no file, so it is gone."""
    expected = federate(aggregation="secure", **EIGHT).model_sha256
    folder = RunFolder.create(tmp_path, "r")
    run = prepare(config(aggregation="secure", **EIGHT), task=task, folder=folder)
    folder.write_config(run.config.model_dump(exclude_none=True))
    run.step(), run.step()
    sessions = run.fed.engine.here.sessions
    secrets = [k.to_bytes() for s in sessions.values() for m in s.ready.values() for k in (m._seal_key, m._mask_key)]
    run.close()
    assert len(secrets) == 16
    stored = b"".join(path.read_bytes() for path in folder.path.rglob("*") if path.is_file())
    assert not any(secret in stored or secret.hex().encode() in stored for secret in secrets)
    assert resume(folder.path, task=task).model_sha256 == expected


# -- a malicious server --------------------------------------------------------------------------
@pytest.fixture
def second(config):
    """Return a run after its first round, what was prepared for the second, and a way to request a vector with it."""
    run = prepare(config(aggregation="secure", **EIGHT), task=make_task())
    run.step()
    fed = run.fed
    fed.on_error = "drop"
    fed.start_round(2, 0)
    fed.aggregation.prepared.begin(2, 0)
    ready = fed.aggregation.prepared._ready["train"]

    def ask(content=None, clients=range(8), function="train", task=None, step="masked", own=None):
        content = run.state.params if content is None else content
        named = {"function": function, "task": task_of(run, content) if task is None else task}
        mail = {c: {**ready.mail[c], "prepared": named} for c in clients} if own is None else own
        receipts, _ = fed.call(step, content, list(clients), Each(), program="secagg", each_message=mail)
        return {r.client: (r.dropped, r.value) for r in receipts}

    yield run, ready, ask
    run.close()


def task_of(run, content, round=2):
    from paceline.aggregation.secure.task_hash import Work
    from paceline.core.engine import declaration

    declared = declaration(run.method.train).fitted(lambda: run.fed.init_params().layout)
    return Work.of(run.fed.aggregation.agreed, "train", declared, content).task(round, 0, 1)


def test_prepared_keys_serve_one_request(second):
    _, _, ask = second
    assert all("segments" in value for _, value in ask().values())
    assert all(value == {"unprepared": 1} for _, value in ask().values())


def test_prepared_keys_do_not_serve_another_round_or_function(second):
    run, _, ask = second
    assert all(value == {"unprepared": 1} for _, value in ask(function="evaluate").values())
    run.fed.start_round(3, 0)
    assert all(value == {"unprepared": 1} for _, value in ask().values())
    run.fed.start_round(2, 0)
    assert all(value == {"unprepared": 1} for _, value in ask().values())  # the attempt has used them up


def test_prepared_keys_do_not_serve_another_message(second):
    run, _, ask = second
    other = run.state.params * 2.0
    answers = ask(other, task=task_of(run, run.state.params))
    assert all("does not match the session's hash" in why for why, _ in answers.values())


def test_after_a_repeated_or_abandoned_round_nothing_is_prepared(second):
    run, _, ask = second
    run.fed.engine.rollback()
    assert all(value == {"unprepared": 1} for _, value in ask().values())


def test_a_new_session_of_the_function_burns_the_prepared_one(second):
    run, ready, ask = second
    session = new_session(range(8), SecureConfig(**LOOSE), 2, 5)
    session = dataclasses.replace(session, function="train", task=bytes([1]) * 32)
    run.fed.call("advertise", session.plain(), range(8), Each(), program="secagg")
    assert all(value == {"unprepared": 1} for _, value in ask().values())
    receipts, _ = run.fed.call("advertise", ready.server.session.plain(), range(8), Each(), program="secagg")
    assert all("cannot choose the task" in r.dropped for r in receipts)


def test_a_replaced_identity_key_ends_the_preparation(second):
    run, _, ask = second
    run.fed.aggregation.directory._keys[3] = IdentityKey.generate()
    assert all(value == {"unprepared": 1} for _, value in ask().values())


def test_two_tasks_for_two_halves_open_nothing(second):
    """Masks and signatures depend on the task, so neither half has enough neighbours that signed its list."""
    run, ready, ask = second
    one, two = run.state.params, run.state.params * 2.0
    first, last = ask(one, range(4)), ask(two, range(4, 8))
    assert all("segments" in value for _, value in (first | last).values())
    signed = run.fed.call("consistency", {"alive": list(range(8))}, range(8), Each(), program="secagg")[0]
    signatures = {r.client: r.value["signature"] for r in signed}
    near = {c: {v: s for v, s in signatures.items() if v != c} for c in range(8)}
    receipts, _ = run.fed.call("unmask", None, range(8), Each(), program="secagg", each_message=near)
    assert all("signed the same list" in r.dropped for r in receipts)
    server = ready.bound(task_of(run, one), 1)
    accepted = [c for c, (_, value) in (first | last).items() if takes(server, c, value)]
    assert accepted == [0, 1, 2, 3]


def takes(server, client, message):
    from paceline.aggregation.secure.messages import as_bytes

    return server.add_masked(client, {**message, "segments": as_bytes(message["segments"])}, "")


# -- single sessions -----------------------------------------------------------------------------
def parties(clients=8, **changes):
    identities = {c: IdentityKey.generate() for c in range(clients)}
    directory = {c: key.public for c, key in identities.items()}
    session = dataclasses.replace(new_session(range(clients), SecureConfig(**LOOSE), 1), function="train", **changes)
    after = session.following(bytes([7]) * 32)
    return SecureServer(session, directory), {c: SecureClient(c, after, identities[c], directory) for c in range(clients)}


def ready_one(now, clients, swap=None, sealed=None):
    coming = Preparation(now)
    fixed = dataclasses.replace(coming.server.session, id=bytes([7]) * 32)
    coming.server.session = fixed
    for c, machine in clients.items():
        coming.add_advert(c, machine.advertise())
    for c, machine in clients.items():
        directory = coming.directory_for(c)
        if swap:
            directory = swap(c, directory)
        shares = machine.share(directory["hashes"], directory["adverts"])
        if sealed is not None:
            sealed[c] = shares
        coming.add_shares(c, shares)
    return coming


def test_keys_shown_differently_to_two_halves_open_nothing():
    """Four clients are shown the keys of all, the others those of all but one: lists of different keys are signed differently."""
    now, clients = parties()
    seen = {c: [v for v in clients if v < 7 or c > 3] for c in clients}

    def swap(client, directory):
        return {part: {v: x for v, x in directory[part].items() if v in seen[client]} for part in ("hashes", "adverts")}

    sealed = {}
    ready_one(now, clients, swap, sealed)
    mail = {c: {v: sealed[v]["sealed"][c] for v in seen[c] if v != c and c in sealed[v]["sealed"]} for c in range(7)}
    told = {c: {v: sealed[v]["told"][c] for v in mail[c]} for c in range(7)}
    signed, segment = {}, Segment("main", 2, 24)
    for c in range(7):
        clients[c].bind(bytes([1]) * 32)
        clients[c].receive(mail[c], told[c])
        clients[c].masked([(segment, np.ones(2, segment.dtype))])
        signed[c] = clients[c].consistency(list(range(7)))["signature"]
    for c in range(7):
        with pytest.raises(ProtocolError, match="signed the same list"):
            clients[c].unmask({v: s for v, s in signed.items() if v != c})


def test_keys_of_another_session_or_without_signature_are_refused():
    now, clients = parties()
    _, others = parties()
    foreign = others[3].advertise()["keys"]

    def swap(client, directory):
        adverts = {v: foreign if v == 3 else a for v, a in directory["adverts"].items()}
        return {**directory, "adverts": adverts}

    with pytest.raises(ProtocolError, match="keys of client 3"):
        ready_one(now, clients, swap)


def test_a_session_is_bound_once_and_only_after_its_shares():
    now, clients = parties()
    machine = clients[0]
    with pytest.raises(ProtocolError, match="one task only"):
        machine.bind(bytes([1]) * 32)
    now, clients = parties()
    ready_one(now, clients)
    clients[0].bind(bytes([1]) * 32)
    with pytest.raises(ProtocolError, match="one task only"):
        clients[0].bind(bytes([2]) * 32)


def test_contexts_of_keys_ignore_the_task_of_a_prepared_session_only():
    session = new_session(range(4), SecureConfig(), 3)
    plain = dataclasses.replace(session, function="train", task=bytes([5]) * 32)
    after = plain.following(bytes(32))
    assert after.round == 4
    assert after.clients == session.clients
    one, two = after.bound(bytes([1]) * 32), after.bound(bytes([2]) * 32)
    assert one.key_context("shares") == two.key_context("shares") == after.key_context("shares")
    assert len({s.context("masked") for s in (one, two, after)}) == 3
    assert plain.key_context("shares") == plain.context("shares")
    unprepared = dataclasses.replace(after, prepared=False)
    assert unprepared.key_context("shares") != after.key_context("shares")


@pytest.mark.parametrize("changes", [{"call": 2}, {"config": SecureConfig(**LOOSE, pipelined=False)}])
def test_what_cannot_be_prepared(changes):
    session = dataclasses.replace(new_session(range(8), SecureConfig(**LOOSE)), **changes)
    with pytest.raises(ProtocolError, match="no session can be prepared"):
        session.following(bytes(32))
    for id in (bytes(31), None, "x" * 32):
        with pytest.raises(ProtocolError, match="no session can be prepared"):
            new_session(range(8), SecureConfig(**LOOSE)).following(id)


@pytest.mark.parametrize("message", [None, 3, {}, {"keys": b"x"}, {"sealed": 1, "told": {}, "commit": b""}, {"sealed": {"a": []}}])
def test_malformed_preparations_are_discarded(message):
    now, clients = parties()
    coming = Preparation(now)
    for c in clients:
        coming.add_advert(c, message)
        coming.add_shares(c, message)
    assert coming.directory_for(0) is None
    assert not coming.complete()


def test_the_server_uses_a_preparation_for_exactly_one_sum(reasons):
    now, clients = parties()
    keys = dict(now.directory)

    def prepared(at=(1, 0)):
        store = Preparations()
        store.begin(*at)
        coming = ready_one(now, parties_again(clients))
        assert coming.complete()
        store._coming["train"] = coming
        return store

    def parties_again(old):
        return {c: SecureClient(c, m.session, m.identity, m.directory) for c, m in old.items()}

    store = prepared()
    store.begin(2, 0)
    ready = store.take("train", keys, (0, 1))
    assert len(ready.bound(bytes([1]) * 32, 1)._adverts) == 8
    assert not ready.bound(bytes([1]) * 32, 1)._adverts
    assert not reasons()
    assert store.take("train", keys, (0, 1)) is None
    for at, function, cohort, place, why in [
        ((2, 1), "train", keys, (0, 1), "the round is repeated"),
        ((3, 0), "train", keys, (0, 1), "no sum of this function in the round before"),
        ((2, 0), "report", keys, (0, 1), "no sum of this function in the round before"),
        ((2, 0), "train", {c: k for c, k in keys.items() if c}, (0, 1), "clients [0] joined or left"),
        ((2, 0), "train", {**keys, 9: bytes(32)}, (0, 1), "clients [9] joined or left"),
        ((2, 0), "train", {**keys, 0: bytes(32)}, (0, 1), "identity keys of clients [0] were replaced"),
        ((2, 0), "train", keys, (0, 2), "it is sum 2"),
        ((2, 0), "train", keys, (1, 1), "the round is repeated"),
    ]:
        store = prepared()
        store.begin(*at)
        reasons()
        assert store.take(function, cohort, place) is None
        assert why in reasons(function)[at[0]]
    store = prepared()
    store.begin(2, 0)
    assert store.take("train", keys, (0, 1), "for this reason") is None
    assert reasons() == {2: "for this reason"}


@pytest.mark.parametrize("missing", ["keys", "shares"])
def test_preparations_without_shares_are_tried_less_and_less_often(reasons, missing):
    store, tried, why = Preparations(), [], {}
    for round in range(1, 40):
        store.begin(round, 0)
        store.take("train", {}, (0, 1))
        why |= reasons()
        now, _ = parties()
        now.session = dataclasses.replace(now.session, round=round)
        if (coming := store.start(now, True)) is not None:
            tried.append(round)
            if missing == "shares":
                coming._directory = {0: {}}
            store.finish(coming)
    assert all(why[round + 1].startswith(f"the {missing} of clients") for round in tried if round < 39)
    if missing == "keys":  # these cost nothing
        assert tried == list(range(1, 40))
    else:
        assert tried == [1, 2, 4, 8, 16, 24, 32]
        assert why[4] == "shares or prepared keys were missing lately; the next preparation is made in round 4"


def test_a_cohort_that_is_not_known_is_not_prepared_for(reasons):
    store = Preparations()
    now, _ = parties()
    store.begin(1, 0)
    assert store.start(now, False) is None
    store.begin(2, 0)
    assert store.take("train", {}, (0, 1)) is None
    assert "cohort of the round before was new" in reasons()[2]
    other, _ = parties(7)
    other.session = dataclasses.replace(other.session, call=2)
    assert store.start(other, True) is None  # a further sum in the round, which says nothing about the next round's first
    assert store.start(now, False) is not None  # the same clients as in the last sum
    store.begin(3, 0)
    assert store.take("train", {}, (0, 1)) is None
    assert "was lost" in reasons()[3]


def test_too_few_clients_left_is_an_ordinary_loss(federate):
    with pytest.raises(QuorumError):
        federate(aggregation="secure", drop=lambda r, c, f: r == 2 and c < 5, **EIGHT)
