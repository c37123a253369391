"""Paceline: store."""
