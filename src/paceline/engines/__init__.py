"""Paceline: engines."""
