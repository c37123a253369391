"""Work that is begun in one round and handed over in another, over the network: held by real clients."""

import pytest


@pytest.mark.parametrize("aggregation", ["plain", "secure"])
def test_same_bits_as_local(networked, federate, aggregation):
    run = {"method": "fedbuff", "options": {"buffer": 4, "lr": 0.02}, "aggregation": aggregation, "clients": 5, "cohort": 5, "rounds": 4}
    run["fleet"] = "stragglers:share=0.4,slow=6,compute=1e5"
    there, here = networked(run), federate(vectorize="off", **run)
    assert there.model_sha256 == here.model_sha256
    assert (there.bytes_up, there.bytes_down) == (here.bytes_up, here.bytes_down)
    assert there.total_seconds == here.total_seconds
