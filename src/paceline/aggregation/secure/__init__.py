"""Paceline: aggregation/secure."""
