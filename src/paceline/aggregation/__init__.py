"""Aggregation: how the replies of a cohort are summed (plain, secure, secure-arithmetic)."""

from collections.abc import Mapping
from typing import Any

from paceline.aggregation.plain import Plain
from paceline.core.errors import UnknownNameError
from paceline.core.federation import Aggregation

__all__ = ["AGGREGATIONS", "Plain", "load_aggregation"]

AGGREGATIONS = ("plain", "secure", "secure-arithmetic")
"""Aggregation names accepted by `load_aggregation` and the command line."""


def load_aggregation(name: str, secure: Mapping[str, Any], bound: float, agreed: Any = None) -> Aggregation:
    """Return the aggregation registered under a name.

    Args:
        name: one of `AGGREGATIONS`.
        secure: options of `SecureConfig`; used by ``secure`` and ``secure-arithmetic``.
        bound: largest |weight x value| of one client's coordinate; used by ``plain``.
        agreed: the `Agreement` that every secure session is bound to; None for an empty one.

    Raises:
        UnknownNameError: unknown name or unknown option of secure aggregation.
        ConfigError: invalid value of an option.

    Example:
        >>> load_aggregation("plain", {}, bound=2.0**20).name
        'plain'
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
