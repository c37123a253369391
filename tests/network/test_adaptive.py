"""Adaptive clients on measured devices: over a real network a client that is too slow sits out, in plain and in masked sums."""

from typing import Any

import pytest

POLICY = """
[cohort]
least = 3
"""
CLIP = {
    "method": "clip",
    "options": {"adaptive": True, "warmup": 1},
    "clients": 6,
    "cohort": 6,
    "rounds": 5,
    "measured": True,
    "quorum": 3,
}


@pytest.mark.parametrize("aggregation", [pytest.param("plain", marks=pytest.mark.slow), "secure"])
def test_a_slow_device_sits_out_but_in_the_open_round(loopback: Any, aggregation: str) -> None:
    phase = "train" if aggregation == "plain" else "secagg.masked"
    secure = {"gamma": 0.0, "threshold": 4} if aggregation == "secure" else {}
    loopback.serve({**CLIP, "aggregation": aggregation, "secure": secure}, {"least": 6})
    policy = "[secure_aggregation]\nrequired = false\n" if aggregation == "plain" else "[secure_aggregation]\ngamma = 0.0\n"
    for client in range(6):
        loopback.client(client, policy=policy + POLICY, faults=[f"slow:client=5,factor=25,phase={phase}"])
    summary = loopback.finish()
    assert [r["dropped"] for r in summary.history] == [0, 0, 1, 0, 1]
    assert not any("lost" in r for r in summary.history)  # it has not failed
    paces = {n: node.runner.worker.memories[n]["pace"] for n, node in loopback.nodes.items()}
    assert paces[5]["own"] > paces[5]["cutoff"]
    assert paces[5]["compute"] > 5 * max(pace["compute"] for client, pace in paces.items() if client != 5)
    assert {loopback.nodes[n].runner.worker.memories[n]["trained"] for n in range(5)} == {5}
    assert loopback.nodes[5].runner.worker.memories[5]["trained"] == 4
