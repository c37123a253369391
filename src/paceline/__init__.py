"""Paceline: secure federated learning that is not held back by its slowest client."""

__version__ = "0.1.0"
