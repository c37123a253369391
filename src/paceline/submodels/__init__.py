"""Paceline: submodels."""
