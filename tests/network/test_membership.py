"""What a deployment says at the start, and what it does unless it is told otherwise."""

import pytest

from paceline.core.errors import PlanError
from paceline.deploy.plan import Privacy
from paceline.deploy.settings import ClientConfig


def test_a_server_that_can_admit_its_own_clients_says_so(loopback):
    loopback.serve({"rounds": 1}, {"ca": loopback.root / "ca"})
    assert "can admit clients and surround an honest one" in loopback.server_lines.of("membership")[0]["why"]
    for number in range(5):
        loopback.client(number)
    assert loopback.finish().rounds == 1


def test_one_whose_authority_is_apart_does_not(loopback):
    loopback.serve({"rounds": 1})
    assert loopback.server_lines.of("membership") == []
    for number in range(5):
        loopback.client(number)
    loopback.finish()


def test_a_promise_of_privacy_ends_at_the_server(loopback):
    with pytest.raises(PlanError, match="no mechanism for it is installed"):
        loopback.serve({"rounds": 1}, privacy=Privacy(epsilon=1.0, delta=1e-6))


def test_clients_draw_from_a_secret_seed(loopback, federate):
    """With the run's seed a server could compute what stochastic rounding did."""
    assert ClientConfig().client.private_rounding is True
    run = {"rounds": 1, "clients": 5, "cohort": 5, "aggregation": "secure"}
    loopback.serve(run)
    for number in range(5):
        loopback.client(number, private_rounding=True)
    assert loopback.finish().model_sha256 != federate(**run).model_sha256
