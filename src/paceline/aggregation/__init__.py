"""Aggregation: how the replies of a cohort are summed (plain, secure, secure-arithmetic)."""

from collections.abc import Mapping
from typing import Any

from paceline import registry
from paceline.aggregation.plain import Plain
from paceline.core.engine import Aggregation
from paceline.core.errors import ConfigError
from paceline.core.wording import setting

__all__ = ["Plain", "load_aggregation"]


def load_aggregation(spec: str, secure: Mapping[str, Any], bound: float, agreed: Any = None) -> Aggregation:
    """Return the aggregation registered under a name.

    Args:
        spec: name of an aggregation, with options after a colon for those that take any.
        secure: options of `SecureConfig`; used by aggregations that take a ``config``.
        bound: largest |weight x value| of one client's coordinate; used by ``plain``.
        agreed: the `Agreement` that every secure session is bound to; None for an empty one.

    Raises:
        UnknownNameError: unknown name or unknown option.
        ConfigError: invalid value of an option.

    Example:
        >>> load_aggregation("plain", {}, bound=2.0**20).name
        'plain'
    """
    read = registry.parse("aggregation", spec)
    if read.options and registry.describe("aggregation", read.name).package == "paceline":
        told = f"set them with {setting('secure')}, or in [secure]"
        raise ConfigError(f"aggregation {spec!r}: {read.name} takes no options here; {told}")
    offered: dict[str, Any] = {"bound": bound} if agreed is None else {"bound": bound, "agreed": agreed}
    if "config" in registry.parameters(registry.load("aggregation", read.name)):
        from paceline.aggregation.secure.program import secure_config

        offered["config"] = secure_config(secure)
    made: Aggregation = registry.build("aggregation", read, offered)
    return made
