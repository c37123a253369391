"""Aggregation: how the replies of a cohort are summed (plain, secure, secure-arithmetic)."""

from collections.abc import Mapping
from typing import Any

from paceline import registry
from paceline.aggregation.plain import Plain
from paceline.core.errors import ConfigError
from paceline.core.federation import Aggregation

__all__ = ["Plain", "load_aggregation"]


def load_aggregation(spec: str, secure: Mapping[str, Any], bound: float, agreed: Any = None) -> Aggregation:
    """Return an aggregation by name.

    Args:
        spec: a name, with options after a colon.
        secure: options of secure aggregation, for those that take a ``config``.
        bound: of plain sums.
        agreed: the `Agreement` that secure sums are bound to.

    Raises:
        UnknownNameError: for a name or option that does not exist.
        ConfigError: for a value that does not fit.
    """
    read = registry.parse("aggregation", spec)
    if read.options and registry.describe("aggregation", read.name).package == "paceline":
        raise ConfigError(f"aggregation {spec!r}: {read.name} takes no options here; set them with --secure-option, or in [secure]")
    offered: dict[str, Any] = {"bound": bound} if agreed is None else {"bound": bound, "agreed": agreed}
    if "config" in registry.parameters(registry.load("aggregation", read.name)):
        from paceline.aggregation.secure.program import secure_config

        offered["config"] = secure_config(secure)
    made: Aggregation = registry.build("aggregation", read, offered)
    return made
