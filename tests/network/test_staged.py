"""What a client stages counts only if its reply does: over the network as in a simulation, whatever else it answered."""

import pytest

RUN = {
    "method": "scaffold",
    "clients": 6,
    "cohort": 6,
    "rounds": 6,
    "fleet": "mobile:link=5e5,least=0.8,vary=1.5,compute=1e7",
    "deadline": 0.35,
}


@pytest.mark.parametrize("evaluation", ["central", "federated"])
def test_a_late_reply_leaves_nothing_behind(networked, federate, evaluation):
    """Those that were late in training answer the evaluation of the same round, so that the round keeps them."""
    run = RUN | {"evaluation": evaluation}
    there, here = networked(run), federate(vectorize="off", **run)
    assert sum(r["dropped"] > 0 for r in here.history) > 2
    assert there.model_sha256 == here.model_sha256


def test_an_operation_that_counts_is_kept_although_a_later_one_of_the_round_is_lost(networked, federate):
    """In the first round all clients send their first controls, and some are late with the training that follows."""
    run = RUN | {"method": "scaffoldmvr", "rounds": 4}
    there, here = networked(run), federate(vectorize="off", **run)
    assert here.history[0]["dropped"] > 0
    assert there.model_sha256 == here.model_sha256
