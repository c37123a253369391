"""The federated core: parameters, updates, clients, server verbs, the local loop. It imports nothing of the rest."""
