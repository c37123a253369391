"""Paceline: models."""
