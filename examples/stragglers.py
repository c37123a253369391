"""Stragglers under secure aggregation: wait for all clients, drop the slow ones, or train sub-models on them (CLIP).

Run it with ``python examples/stragglers.py``. It takes about a minute; fetch its data first, with
``paceline data fetch mnist-5k``.
"""

import paceline as pl


def main():
    table = pl.compare(
        [pl.methods.FedAvg(epochs=5), pl.methods.DropStragglers(epochs=5), pl.methods.Clip(epochs=5)],
        "mnist-5k",
        seeds=range(2),
        clients=10,
        cohort=10,
        rounds=10,
        task_options={"limit": 1000},
        partition="dirichlet:0.3",
        fleet="stragglers",  # simulated devices on a virtual clock: 2 of 10 have slow compute or links
        aggregation="secure",  # the real protocol: the server opens only sums over the survivors
    )
    print(table)
    table.plot()


if __name__ == "__main__":
    main()
