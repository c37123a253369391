"""One hostile client spoils secure sums in every way it can: the run ends without it, and says who was left out, and why."""

import secrets

import pytest
import torch

from paceline.aggregation.secure.keys import IdentityKey
from paceline.aggregation.secure.messages import as_bytes, as_tensors
from paceline.aggregation.secure.session import masked_digest, number
from paceline.aggregation.secure.shamir import PRIME

RUN = {"method": "fedavg", "clients": 6, "cohort": 6, "rounds": 2, "aggregation": "secure", "secure": {"gamma": 0.0}}
LOOSE = {**RUN, "rounds": 1, "secure": {"gamma": 0.0, "threshold": 4}}
"""With a threshold at which one of six may drop out."""

BAD = 5


def answering(node, step, change):
    """Let a client answer one step as `change` says, given its machine and the honest answer."""
    build = node.runner._work

    def work(welcome):
        worker = build(welcome)
        program = worker.setup.programs["secagg"]
        honest = getattr(program, step)

        def other(me, message):
            machine = None if me.session.state is None else me.session.state.machine
            return change(machine, honest(me, message))

        setattr(program, step, other)
        return worker

    node.runner._work = work


def run_with(loopback, step, change, run=RUN, bad=(BAD,)):
    loopback.serve(run, waiting={"reconnect": 0.3})
    for client in range(run["clients"]):
        node = loopback.client(client)
        if client in bad:
            answering(node, step, change)
    return loopback.finish()


def excluded(summary):
    return {int(c): why for record in summary.history for c, why in record.get("excluded", {}).items()}


def random_shares(machine, answer):
    return {**answer, "sealed": {v: secrets.token_bytes(len(s)) for v, s in answer["sealed"].items()}}


def shares_for_one(machine, answer):
    first = min(answer["sealed"])
    return {**answer, "sealed": answer["sealed"] | {first: secrets.token_bytes(len(answer["sealed"][first]))}}


def test_shares_that_nobody_can_open(loopback):
    """The accused sits out from the first attempt on: the others' sum is formed in the second."""
    summary = run_with(loopback, "share", random_shares)
    assert summary.rounds == 2
    why = "clients [0, 1, 2, 3, 4] could not decrypt its shares"
    assert excluded(summary) == {BAD: why}
    assert [line.get("excluded") for line in loopback.server_lines.of("round")] == [{str(BAD): why}] * 2
    assert [r["attempts"] for r in summary.history] == [2, 2]  # it comes back once, and then stays away for longer


def test_shares_that_one_client_cannot_open(loopback):
    """It cannot be told which of the two lies, so both sit out."""
    summary = run_with(loopback, "share", shares_for_one)
    assert BAD in excluded(summary)
    assert len(excluded(summary)) <= 3


def accuse_all(machine, answer):
    return {"accused": [v for v in machine.session.clients if v != machine.me]}


def test_a_client_that_accuses_all_others_goes_alone(loopback):
    summary = run_with(loopback, "masked", accuse_all)
    assert set(excluded(summary)) == {BAD}
    assert "reported invalid shares" in excluded(summary)[BAD]


@pytest.mark.parametrize("accused", [[7], ["a"], "text", [], {1: 2}, [[1]], [torch.zeros(3)]], ids=str)
def test_accusations_that_mean_nothing(loopback, accused):
    summary = run_with(loopback, "masked", lambda m, a: {"accused": accused}, LOOSE)
    assert excluded(summary) == {}
    assert summary.history[0]["note_refused"] == 1
    assert summary.history[0]["lost"] == f"1 refused (malformed message, such as client {BAD})"


def test_a_wrong_commitment(loopback):
    """Its mask stays in the sum, which is lost; the half without it is summed again, and it sits out."""
    summary = run_with(loopback, "share", lambda m, a: {**a, "commit": secrets.token_bytes(32)})
    assert summary.rounds == 2
    assert excluded(summary) == {BAD: "shares that do not match its commitment"}
    assert summary.history[0]["attempts"] == 2


def resigned(machine, answer, packed):
    """Return the answer with other words, signed as if they were honest."""
    digest = masked_digest(answer["table"], packed)
    identity: IdentityKey = machine.identity
    signature = identity.sign(machine.session.context("masked") + number(machine.me) + digest)
    return {**answer, "segments": as_tensors(packed), "signature": signature}


def random_words(machine, answer):
    return resigned(machine, answer, [secrets.token_bytes(len(part)) for part in as_bytes(answer["segments"])])


def test_random_words_that_are_signed(loopback):
    """Nobody can tell whose they are; the halves are summed, and the one that holds them is left out."""
    summary = run_with(loopback, "masked", random_words)
    assert summary.rounds == 2
    assert summary.history[0]["attempts"] == 2
    assert summary.accuracy > 0.3


def test_a_cohort_that_cannot_be_split_ends_in_a_named_error(loopback):
    """With five clients a half of them would be too small to hide anybody."""
    from paceline.core.errors import QuorumError

    with pytest.raises(QuorumError, match="opened before"):
        run_with(loopback, "masked", random_words, {**RUN, "clients": 5, "cohort": 5}, bad=(4,))


def shifted(machine, answer, by):
    """Return the answer with another weight: masks let whoever knows the modulus add to its own word."""
    packed = [bytes(part) for part in as_bytes(answer["segments"])]
    for place, (name, length, bits) in enumerate(answer["table"]):
        if name == "counts":
            width, first = -(-bits // 8), packed[place]
            word = (int.from_bytes(first[:width], "little") + by) % (1 << bits)
            packed[place] = word.to_bytes(width, "little") + first[width:]
            assert length == 1
    return resigned(machine, answer, packed)


@pytest.mark.parametrize("by", [-6, 1, 5, -8])
def test_a_weight_beyond_what_a_client_has(loopback, by):
    """Weights have a modulus of their own, and their sum must be one that the survivors can have sent."""
    summary = run_with(loopback, "masked", lambda m, a: shifted(m, a, by), {**RUN, "rounds": 1})
    assert summary.history[0]["attempts"] == 2
    assert summary.rounds == 1


def test_a_weight_that_could_be_honest_moves_a_mean_within_the_clip(loopback):
    """-2 in place of 1: the sum of weights is possible, and no mean leaves [-C, C]."""
    from paceline.aggregation.secure.codec import Codec

    means = []
    real = Codec.decode

    def decode(self, shape, opened, survivors):
        summed = real(self, shape, opened, survivors)
        means.append(float(summed.tensors[0].abs().max()) / summed.scalars[-1])
        return summed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Codec, "decode", decode)
        summary = run_with(loopback, "masked", lambda m, a: shifted(m, a, -3), {**RUN, "rounds": 1})
    assert summary.rounds == 1
    assert means
    assert max(means) <= 1.0


TABLES = {
    "a tensor": lambda a: {**a, "table": [[torch.zeros(3), 1, 2]]},
    "a tensor for all": lambda a: {**a, "table": torch.zeros(3)},
    "tensors in place of numbers": lambda a: {**a, "table": [["main", torch.tensor([1, 2]), 19]]},
    "a shape of tensors": lambda a: {
        **a,
        "shape": {"plan": torch.zeros(2), "scalars": torch.zeros(2), "counts": 1, "structure": 1},
    },
    "a share of tensors": lambda a: {**a, "segments": [torch.zeros(3), torch.zeros(2)]},
}


@pytest.mark.parametrize("name", TABLES)
def test_tensors_where_a_table_is(loopback, federate, name):
    summary = run_with(loopback, "masked", lambda m, a: TABLES[name](a), LOOSE)
    here = federate(drop=lambda r, c, f: c == BAD and f == "secagg.masked", **LOOSE)
    assert summary.model_sha256 == here.model_sha256


@pytest.mark.parametrize(
    ("step", "junk"),
    [
        ("advertise", {"keys": torch.zeros(128, dtype=torch.uint8)}),
        ("share", {"sealed": {0: torch.zeros(108)}, "told": torch.zeros(2), "commit": torch.zeros(32)}),
        ("consistency", {"signature": torch.zeros(64)}),
        ("unmask", {"self": torch.zeros(2), "keys": [torch.zeros(2)]}),
        ("unmask", {"self": {0: (PRIME + 1).to_bytes(33, "little")}, "keys": {}}),
    ],
)
def test_tensors_in_other_steps(loopback, step, junk):
    summary = run_with(loopback, step, lambda m, a: junk, LOOSE)
    assert summary.rounds == 1
    assert summary.history[0]["note_refused"] == 1


def wrong_shares(machine, answer):
    return {**answer, "self": {v: secrets.token_bytes(32) for v in answer["self"]}}


def one_wrong_share(machine, answer):
    return {**answer, "self": {**answer["self"], 0: secrets.token_bytes(32)}}


def shares_kept_back(machine, answer):
    return {**answer, "self": {v: s for v, s in answer["self"].items() if v != 0}}


@pytest.mark.parametrize("change", [wrong_shares, one_wrong_share, shares_kept_back])
def test_wrong_shares_cost_their_holder_its_place_and_nobody_else(loopback, change):
    """All five shares are needed here, so no decoder finds the wrong ones: without checks their owners would be blamed."""
    summary = run_with(loopback, "unmask", change)
    assert summary.rounds == 2
    assert set(excluded(summary)) == {BAD}
    assert [r["attempts"] for r in summary.history] == [2, 2]


def test_a_share_that_is_not_the_one_whose_hash_was_told(loopback):
    """Whoever opens it says so before it masks anything, so nobody can be blamed for it later."""
    flip = lambda sealed: bytes([sealed[0] ^ 1]) + sealed[1:]  # noqa: E731 - the first byte of a hash
    summary = run_with(loopback, "share", lambda m, a: {**a, "sealed": {v: flip(s) for v, s in a["sealed"].items()}})
    assert excluded(summary) == {BAD: "clients [0, 1, 2, 3, 4] could not decrypt its shares"}


@pytest.mark.parametrize("step", ["advertise", "share", "masked", "consistency", "unmask"])
def test_a_client_that_falls_silent_where_all_are_needed(loopback, step):
    """The round is lost, and tried again without it: it is there, so only its silence tells."""

    def silent(machine, answer):
        raise ValueError("no answer")

    summary = run_with(loopback, step, silent)
    assert summary.rounds == 2
    assert [r["attempts"] for r in summary.history] == [3 if step == "unmask" else 2] * 2  # shares are asked for once more first


@pytest.mark.parametrize("step", ["advertise", "share", "masked", "consistency"])
def test_one_silence_in_a_later_sum_of_a_round_does_not_end_a_run(loopback, step):
    """The first sum was opened over all of them, so without the silent client the round could not be repeated."""
    steps = []

    def once(machine, answer):
        steps.append(step)
        if len(steps) == 2:
            raise ValueError("no answer")
        return answer

    run = {**RUN, "method": "fedavgmvr", "clients": 5, "cohort": 5}  # sums gradients, then updates; with five none can be missed
    summary = run_with(loopback, step, once, run, bad=(4,))
    assert [r["attempts"] for r in summary.history] == [2, 1]


def test_silence_in_each_later_sum_costs_its_place(loopback):
    """It is asked once more; then the halves are summed, where there are any."""
    steps = []

    def never_again(machine, answer):
        steps.append(1)
        if machine.session.function == "train":
            raise ValueError("no answer")
        return answer

    summary = run_with(loopback, "masked", never_again, {**RUN, "method": "fedavgmvr", "rounds": 1})
    assert [r["attempts"] for r in summary.history] == [3]


DEFAULT = {"method": "fedavg", "clients": 10, "cohort": 10, "rounds": 2, "aggregation": "secure", "on_error": "drop"}
SPOILT = {
    "random words": ("masked", random_words),
    "a wrong commitment": ("share", lambda m, a: {**a, "commit": secrets.token_bytes(32)}),
    "an impossible weight": ("masked", lambda m, a: shifted(m, a, 5)),
}


@pytest.mark.parametrize("name", SPOILT)
def test_ten_clients_with_default_policies_go_on_without_the_spoiler(sixteen, name):
    """With a gamma of 0.1, one of them may be corrupt, and halves of five are large enough."""
    step, change = SPOILT[name]
    sixteen.serve(DEFAULT, {"least": 10}, waiting={"reconnect": 0.3})
    for client in range(10):
        node = sixteen.client(client, policy="")
        if client == BAD:
            answering(node, step, change)
    summary = sixteen.finish(60)
    assert summary.rounds == 2
    assert summary.history[0]["attempts"] == 2
    assert set(excluded(summary)) == ({BAD} if step == "share" else set())  # else the spoilt half is left out
