"""Work that is begun in one round and handed over in another, over the network: held by real clients."""

import time

import pytest

FEDBUFF = {"method": "fedbuff", "options": {"buffer": 4, "lr": 0.02}}
RUN = {"clients": 5, "cohort": 5, "rounds": 4, "fleet": "stragglers:share=0.4,slow=6,compute=1e5"}


@pytest.mark.parametrize(
    "run",
    [FEDBUFF, {"method": "fedasync"}, {"method": "fedfix", "options": {"period": 0.1}}],
    ids=lambda run: f"{run['method']}-{run.get('aggregation', 'plain')}",
)
def test_same_bits_as_local(networked, federate, run):
    run = {**RUN, **run}
    there, here = networked(run), federate(vectorize="off", **run)
    assert there.model_sha256 == here.model_sha256
    assert (there.bytes_up, there.bytes_down) == (here.bytes_up, here.bytes_down)
    assert there.total_seconds == here.total_seconds


def test_buffered_arrivals_under_secure_aggregation_follow_measured_times(networked):
    """Clients report no virtual times there, so who arrives first is what the server measures."""
    there = networked({**RUN, **FEDBUFF, "aggregation": "secure"})
    assert there.rounds == 4
    assert there.accuracy > 0.5
    assert 0 < there.total_seconds < 60


def test_measured_times_decide_who_arrives_and_a_beginner_is_waited_for(loopback):
    """The slow client begins once in the first round, which takes its time, and is not waited for while it is at work."""
    run = {**RUN, **FEDBUFF, "measured": True, "fleet": "homogeneous", "rounds": 5}
    loopback.serve(run)
    started = time.monotonic()
    for number in range(5):
        loopback.client(number, faults=("delay:client=4,phase=train,seconds=0.8",))
    summary = loopback.finish()
    begun = [e["round"] for e in loopback.client_lines.of("answered") if e["client"] == 4 and e["function"] == "train"]
    assert begun[0] == 1
    assert len(begun) < 5
    assert summary.history[0]["wall_seconds"] > 0.8
    assert time.monotonic() - started > 0.8
