"""Aggregation rules that bear with Byzantine clients; each of them needs every single update."""
