"""How a sum is formed."""

from collections.abc import Mapping
from typing import Any

from paceline.aggregation.plain import Plain
from paceline.core.errors import UnknownNameError
from paceline.core.federation import Aggregation

__all__ = ["AGGREGATIONS", "Plain", "load_aggregation"]

AGGREGATIONS = ("plain", "secure", "secure-arithmetic")
"""Names on the command line."""


def load_aggregation(name: str, secure: Mapping[str, Any], bound: float, agreed: Any = None) -> Aggregation:
    """Return an aggregation by name, with the options of secure aggregation where it is one.

    Args:
        name: one of `AGGREGATIONS`.
        secure: options of secure aggregation.
        bound: of plain sums.
        agreed: the `Agreement` that secure sums are bound to.
    """
    if name == "plain":
        return Plain(bound=bound)
    if name not in AGGREGATIONS:
        raise UnknownNameError("aggregation", name, AGGREGATIONS)
    from paceline.aggregation.secure.program import SecureAggregation, SecureArithmetic, secure_config

    config = secure_config(secure)
    if name == "secure-arithmetic":
        return SecureArithmetic(config)
    return SecureAggregation(config) if agreed is None else SecureAggregation(config, agreed=agreed)
