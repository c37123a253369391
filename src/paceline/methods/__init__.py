"""Paceline: methods."""
