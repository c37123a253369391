"""Paceline: devices."""
