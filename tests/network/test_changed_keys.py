"""A known client with another identity key: refused by name, or taken and logged where the policy says so."""

import pytest

from paceline.deploy.identity.authority import Authority
from tests.network.conftest import OPEN

RUN = {"clients": 3, "cohort": 3, "rounds": 2, "aggregation": "secure"}
ACCEPT = OPEN.replace("[secure_aggregation]", "[secure_aggregation]\naccept_changed_keys = true")


@pytest.fixture
def replaced(loopback):
    """Clients 0 and 2 are there; then client 1 gets other keys."""

    def go(policy):
        loopback.serve(RUN, {"ca": loopback.root / "ca"})
        for number in (0, 2):
            loopback.client(number, policy=policy)
        loopback.wait(lambda: loopback.server.engine.hub.ready() == [0, 2])
        folder = loopback.root / "renewed"
        Authority.open(loopback.root / "ca").issue_client("client1", replace=True).write(folder)
        return loopback

    return go


def test_changed_keys_are_refused_by_name(replaced):
    loopback = replaced(OPEN)
    pinned = [loopback.nodes[n].runner.learn.__self__ for n in (0, 2)]
    before = [p.publics([1]) for p in pinned]
    loopback.wait(lambda: {f["client"] for f in loopback.client_lines.of("keys")} == {0, 2})
    for facts in loopback.client_lines.of("keys"):
        assert "clients client1 (1) have other identity keys than before" in facts["why"]
        assert "accept_changed_keys" in facts["why"]
    assert [p.publics([1]) for p in pinned] == before
    loopback.client(3, keys="renewed")  # the new keys' owner is let in, and the server is alive
    loopback.wait(lambda: loopback.server.engine.hub.sessions.get(1) is not None)


def test_changed_keys_are_taken_where_the_policy_says_so(replaced, federate):
    loopback = replaced(ACCEPT)
    loopback.wait(lambda: {f["client"] for f in loopback.client_lines.of("keys")} == {0, 2})
    assert all(f["changed"] == ["client1"] for f in loopback.client_lines.of("keys"))
    loopback.client(1, policy=ACCEPT, keys="renewed")
    assert loopback.finish().model_sha256 == federate(vectorize="off", **RUN).model_sha256


def test_a_damaged_directory_does_not_end_the_streams(loopback):
    """What looks after streams goes on with the last good one."""
    loopback.serve({**RUN, "aggregation": "plain"})
    loopback.client(0)
    loopback.wait(lambda: loopback.server.engine.hub.ready() == [0])
    (loopback.root / "server" / "directory").write_bytes(b"junk")
    loopback.wait(lambda: loopback.server.gate.fault is not None)
    for number in (1, 2):
        loopback.client(number)
    assert loopback.finish().rounds == 2
