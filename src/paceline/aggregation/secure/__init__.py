"""Secure aggregation, profile R: the protocol itself, without engines."""

from paceline.aggregation.secure.config import SecureConfig, Segment

__all__ = ["SecureConfig", "Segment"]
