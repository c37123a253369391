"""What secure aggregation costs: client and server seconds and bytes against n, d and drop-outs.

All parties run in this process, one after another, on one thread; the client's figures are of one client
that stays to the end. Bytes are of that client, masked vector included.

    python benchmarks/secure_costs.py [--quick]
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import time

import numpy as np

from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.encoding import quantise, to_words
from paceline.aggregation.secure.masks import PRGS, apply_all
from paceline.aggregation.secure.session import new_session
from paceline.aggregation.secure.simulate import secure_sum

VGG9 = 1_469_994


def masking(repeats: int) -> None:
    segment = Segment("main", VGG9, 23)
    words = np.zeros(segment.length, dtype=segment.dtype)
    seeds = [(secrets.token_bytes(32), 1 if i % 2 else -1) for i in range(101)]
    for prg in PRGS:
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            apply_all(words, seeds, "main", prg)
            times.append(time.perf_counter() - started)
        print(f"masking {VGG9} values for 100 neighbours and oneself, {prg}: {statistics.median(times):.3f} s (bar: 0.35 s)")
    values = np.random.default_rng(0).normal(0, 0.1, VGG9).astype(np.float32)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        to_words(quantise(values, 1.0, 16, np.random.default_rng(1))[0], segment)
        times.append(time.perf_counter() - started)
    print(f"encoding {VGG9} values: {statistics.median(times):.3f} s")


def row(n: int, d: int, share: float) -> None:
    config = SecureConfig(gamma=0.05, delta=max(share, 0.05))
    segment = Segment("main", d, config.modulus_bits(n))
    words = np.random.default_rng(0).integers(0, 1 << segment.bits, d, dtype=np.uint64).astype(segment.dtype)
    vectors = {c: [(segment, words)] for c in range(n)}
    gone = {c: "masked" for c in range(1, 1 + round(share * n))}
    session = new_session(vectors, config)
    opened, alive, costs = secure_sum(vectors, config, gone)
    expected = (words.astype(object)[:50] * len(alive)) % (1 << segment.bits)
    assert [int(v) & segment.mask for v in opened[0][:50]] == expected.tolist()
    plain = 4 * d
    print(
        f"{n:5} {d:9} {share:6.0%} {session.neighbours:5} {session.threshold:5} {costs.client_seconds:9.3f} "
        f"{costs.server_seconds:9.3f} {costs.bytes_up / 1e6:9.3f} {costs.bytes_down / 1e6:9.3f} {costs.bytes_up / plain:9.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    quick = parser.parse_args().quick
    masking(3 if quick else 9)
    print("    n         d   lost     k     t  client s  server s     up MB   down MB  up/float32")
    for n in (20, 50) if quick else (20, 50, 100, 200):
        for d in (10_000, 100_000) if quick else (100_000, VGG9):
            for share in (0.0, 0.1) if quick else (0.0, 0.05, 0.1):
                row(n, d, share)


if __name__ == "__main__":
    main()
