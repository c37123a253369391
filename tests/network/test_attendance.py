"""Before the first round the server waits for all expected sites, up to a limit, and says who is missing."""

import threading
import time

import pytest

from paceline.core.address import Address
from paceline.core.errors import CohortError, ConfigError
from paceline.deploy.identity.authority import Authority
from paceline.deploy.identity.enrolment import Invitation
from paceline.deploy.identity.enrolment_client import enrol
from paceline.deploy.settings import ServerConfig, load_config
from tests.network.conftest import OPEN

RUN = {"clients": 3, "cohort": 3, "rounds": 2}
ALL = ("client0", "client1", "client2")


def test_the_first_round_has_all_expected_sites_however_late(loopback):
    loopback.serve(RUN, {"least": 1, "expected": ALL})
    loopback.client(0)
    loopback.client(1)
    loopback.wait(lambda: loopback.server.engine.hub.ready() == [0, 1])
    time.sleep(0.5)  # enough for a round, had it begun
    assert not loopback.server_lines.of("round")
    loopback.client(2)
    summary = loopback.finish()
    assert [r["dropped"] for r in summary.history] == [0, 0]
    assert {e["client"] for e in loopback.client_lines.of("answered") if e["round"] == 1} == {0, 1, 2}
    assert not loopback.server_lines.of("missing")


@pytest.mark.parametrize("expected", [ALL, 3])
def test_at_the_limit_it_begins_with_the_least_number_and_names_the_missing(loopback, monkeypatch, expected):
    monkeypatch.setattr("paceline.deploy.server.attendance.AGAIN", 0.3)
    began = time.monotonic()
    loopback.serve({**RUN, "cohort": 2}, {"least": 2, "expected": expected}, {"expected": 1.0})
    loopback.client(0)
    loopback.client(1)
    summary = loopback.finish()
    assert summary.rounds == 2
    assert time.monotonic() - began >= 1.0
    (facts,) = loopback.server_lines.of("missing")
    assert facts["sites"] == ["client2"]
    assert (facts["count"], facts["here"], facts["least"]) == (1, 2, 2)
    waiting = [f for f in loopback.server_lines.of("waiting") if f["here"] == 2]
    assert 1 <= len(waiting) <= 4  # every 0.3 s of one, and not more often
    assert all(f["missing"] == ["client2"] for f in waiting)


def test_fewer_than_the_least_number_end_the_wait_with_the_names(loopback):
    loopback.serve(RUN, {"least": 2, "expected": ALL}, {"expected": 0.2, "start": 0.5})
    loopback.client(1)
    with pytest.raises(CohortError, match=r"1 clients are connected after 0 s; the minimum is 2; missing: client0, client2"):
        loopback.result.result(10)


def test_a_secure_run_waits_for_three_whatever_it_is_told(loopback):
    """A sum of two shows each to the other, so a round of two could only fail."""
    loopback.serve({**RUN, "aggregation": "secure"}, {"least": 1})
    loopback.client(0)
    loopback.client(1)
    loopback.wait(lambda: loopback.server.engine.hub.ready() == [0, 1])
    time.sleep(0.5)  # enough for three tries, had they begun
    assert not loopback.result.done()
    assert {facts["clients"] for facts in loopback.server_lines.of("waiting")} == {3}
    loopback.client(2)
    assert [r["dropped"] for r in loopback.finish().history] == [0, 0]


def test_who_refuses_is_waited_for_no_longer(loopback):
    loopback.serve({**RUN, "cohort": 2}, {"least": 2, "expected": ALL}, {"expected": 60.0})
    loopback.client(2, policy=OPEN + "[allow]\nmethods = ['scaffold']")
    loopback.client(0)
    loopback.client(1)
    assert loopback.finish().rounds == 2
    assert loopback.server_lines.of("missing")[0]["sites"] == ["client2"]


def test_a_run_that_goes_on_waits_for_the_least_number_only(loopback):
    def stop(record, total):
        loopback.server.stop()

    port = loopback.serve({**RUN, "cohort": 2, "rounds": 3}, {"least": 2, "expected": 2}, observer=stop)
    loopback.client(0)
    loopback.client(1)
    with pytest.raises(Exception, match="start it again"):
        loopback.result.result(10)
    began = time.monotonic()
    loopback.serve(
        {**RUN, "cohort": 2, "rounds": 3}, {"least": 2, "expected": ALL, "listen": f"127.0.0.1:{port}"}, {"expected": 60.0}
    )
    assert loopback.finish().rounds == 3
    assert time.monotonic() - began < 20


def test_a_site_may_enrol_while_it_is_waited_for(loopback):
    """As in the guide: the server starts before the sites have their certificates."""
    ca = Authority.open(loopback.root / "ca")
    token = ca.token("newcomer")
    loopback.serve(
        {**RUN, "clients": 7, "cohort": 2},
        {"ca": loopback.root / "ca", "enrol": "127.0.0.1:0", "least": 1, "expected": ["client0", "newcomer"]},
    )
    Invitation(token, ca.trust, Address("localhost", loopback.server.enrol_port)).save(loopback.root / "i")
    loopback.client(0)
    threading.Timer(0.3, lambda: (enrol(loopback.root / "client6", loopback.root / "i"), loopback.client(6))).start()
    assert loopback.finish().rounds == 2
    assert {e["client"] for e in loopback.client_lines.of("answered") if e["round"] == 1} == {0, 6}


@pytest.mark.parametrize(
    ("expected", "why"),
    [
        (("client0", "clint1"), "'clint1' is neither in the directory nor invited; did you mean client1"),
        (("client5",), "'client5' has number 5, and the run has only 3 clients"),
        (4, "server.expected = 4 exceeds the run's 3 clients"),
    ],
)
def test_sites_that_can_never_come_are_refused_at_the_start(loopback, expected, why):
    with pytest.raises(ConfigError, match=why):
        loopback.serve(RUN, {"expected": expected})


def test_the_forms_of_the_field():
    read = lambda text: load_config(ServerConfig, None, {"PACELINE_SERVER__EXPECTED": text}).server.expected  # noqa: E731
    assert read("3") == 3
    assert read('["a", "b"]') == ("a", "b")
    for bad in ("-1", "x", "[1]", "true"):
        with pytest.raises(ConfigError, match=r"server\.expected"):
            read(bad)
