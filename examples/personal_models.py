"""Clients that want different things: one model for all, a model for each cluster, and a fine-tuned model for each client.

Run it with ``python examples/personal_models.py``. It takes some seconds and reads the digits that come with Paceline.
"""

import paceline as pl


def main():
    # Three groups of clients, each with digits of its own. `evaluation="clients"` judges every client's own model on its own classes.
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
