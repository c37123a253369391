"""What was simulated deploys unchanged: the same bits over the network as in this process."""

import pytest


@pytest.mark.parametrize("aggregation", ["plain", "secure-arithmetic", "secure"])
@pytest.mark.parametrize("method", ["fedavg", "scaffold", "clip"])
def test_same_bits_as_local(networked, federate, method, aggregation):
    run = {
        "method": method,
        "aggregation": aggregation,
        "clients": 5,
        "cohort": 5,
        "rounds": 4,
        "fleet": "stragglers:share=0.2,slow=3",
    }
    there, here = networked(run), federate(vectorize="off", **run)
    assert there.model_sha256 == here.model_sha256
    assert (there.bytes_up, there.bytes_down) == (here.bytes_up, here.bytes_down)
    if aggregation == "secure":  # clients report no times, which would tell how much data they have
        assert all(r["compute_seconds"] == 0 < r["network_seconds"] for r in there.history)
    else:
        assert there.total_seconds == here.total_seconds
