"""Secure aggregation (profile R): the protocol, independent of any engine."""

from paceline.aggregation.secure.config import SecureConfig, Segment

__all__ = ["SecureConfig", "Segment"]
