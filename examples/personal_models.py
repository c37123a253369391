"""Heterogeneous clients: one model for all, one model per cluster, and one fine-tuned model per client.

Run it with ``python examples/personal_models.py``. It takes a few seconds and uses the digits included in Paceline.
"""

import paceline as pl


def main():
    # Three groups of clients with different digits. `evaluation="clients"` tests every client's own model on its own classes.
    common = {
        "clients": 12,
        "cohort": 12,
        "rounds": 10,
        "partition": "groups:0-3/4-6/7-9",
        "evaluation": "clients",
    }
    for method in (pl.methods.FedAvg(), pl.methods.OCFL(), pl.methods.FineTuned()):
        result = pl.run(method, "digits", **common)
        worst = result.history[-1]["worst_client_accuracy"]
        print(f"{type(method).__name__}: accuracy {100 * result.accuracy:.1f} %, worst tenth of clients {100 * worst:.1f} %")


if __name__ == "__main__":
    main()
