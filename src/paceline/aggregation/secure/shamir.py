"""Shamir's secret sharing over a prime field: any t of n shares determine the secret, fewer reveal nothing.

Shares are the values at x of a random polynomial of degree t - 1 whose constant term is the secret. The field
is GF(2^256 - 189), so that a share of a 32-byte secret takes 32 bytes.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from paceline.core.errors import ConfigError

__all__ = ["PRIME", "combine", "share", "weights"]

PRIME = 2**256 - 189


def share(secret: int, threshold: int, xs: Sequence[int], prime: int = PRIME) -> list[int]:
    """Return the share at each of `xs`; any `threshold` of them determine the secret.

    Args:
        secret: from 0 to prime - 1.
        threshold: t.
        xs: distinct points, none of them 0 modulo the prime (the value at 0 is the secret).
        prime: size of the field.

    Raises:
        ConfigError: sharing would be unsafe or impossible with these arguments.

    Example:
        >>> shares = share(42, threshold=2, xs=[1, 2, 3])
        >>> combine(shares[1:], weights([2, 3]))
        42
    """
    _check(xs, prime)
    if not 1 <= threshold <= len(xs):
        raise ConfigError(f"the threshold {threshold} must be from 1 to the number of shares, {len(xs)}")
    if not 0 <= secret < prime:
        raise ConfigError("the secret must be at least 0 and below the prime")
    coefficients = [secrets.randbelow(prime) for _ in range(threshold - 1)]
    out = []
    for x in xs:
        value = 0
        for c in reversed(coefficients):
            value = (value + c) * x % prime
        out.append((value + secret) % prime)
    return out


def weights(xs: Sequence[int], prime: int = PRIME) -> list[int]:
    """Return the Lagrange weights at 0: the secret is the sum of weight * share. One set of weights serves many secrets."""
    _check(xs, prime)
    product = 1
    for x in xs:
        product = product * x % prime
    lower = []
    for x in xs:
        value = x  # product over the others of (x_m / (x_m - x)) = product / (x * product of the differences)
        for other in xs:
            if other != x:
                value = value * (other - x) % prime
        lower.append(value)
    return [product * inverse % prime for inverse in _inverses(lower, prime)]


def combine(ys: Sequence[int], at: Sequence[int], prime: int = PRIME) -> int:
    """Return the secret from t shares and the `weights` of their points."""
    return sum(y * w for y, w in zip(ys, at, strict=True)) % prime


def _inverses(values: Sequence[int], prime: int) -> list[int]:
    """Invert many numbers with a single modular inversion (Montgomery's trick)."""
    running, prefix = 1, []
    for value in values:
        prefix.append(running)
        running = running * value % prime
    inverse = pow(running, -1, prime)
    out = [0] * len(values)
    for i in range(len(values) - 1, -1, -1):
        out[i] = inverse * prefix[i] % prime
        inverse = inverse * values[i] % prime
    return out


def _check(xs: Sequence[int], prime: int) -> None:
    reduced = [x % prime for x in xs]
    if 0 in reduced or len(set(reduced)) != len(reduced):
        raise ConfigError("the x coordinates of shares must be distinct and not 0")
