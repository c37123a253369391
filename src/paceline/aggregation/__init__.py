"""Paceline: aggregation."""
