"""Paceline: cli."""
