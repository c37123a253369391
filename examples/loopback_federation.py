"""A real federation from Python, on one machine: authority, server and clients as processes, over mutual TLS.

Run it with ``python examples/loopback_federation.py``. It takes a few seconds and requires the extra `grpc`. The same run in one process
returns the same model, bit for bit.
"""

import tempfile
from pathlib import Path

from paceline.deploy.loopback import federate
from paceline.run import RunConfig, prepare


def show(record, total_rounds):
    """Print one round as it ends."""
    print(f"round {record['round']} of {total_rounds}: {record['accuracy']:.3f}")


def main():
    config = RunConfig(method="fedavg", task="digits", clients=4, cohort=4, rounds=3, aggregation="secure")
    with tempfile.TemporaryDirectory() as folder:
        # Every client is a process with its own key, certificate and policy; the server can open only sums.
        summary = federate(config, Path(folder) / "federation", show)
    simulated = prepare(config).go()
    print(f"accuracy {100 * summary.accuracy:.1f} %")
    print(f"same bits as the simulation: {summary.model_sha256 == simulated.model_sha256}")


if __name__ == "__main__":  # the processes import this file
    main()
