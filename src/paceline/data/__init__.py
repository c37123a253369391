"""Paceline: data."""
