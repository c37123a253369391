"""Error correction for Shamir's secret sharing: recover a secret although some shares are wrong.

The shares are a Reed-Solomon code word, so shares beyond the threshold identify the wrong ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence

from paceline.aggregation.secure.shamir import PRIME, combine, weights
from paceline.core.errors import ConfigError

__all__ = ["correct", "corrections", "is_prime", "rebuild"]


def is_prime(number: int) -> bool:
    """Return whether `number` passes Miller-Rabin for the first twelve primes (a proof below 3.3e24).

    Example:
        >>> is_prime(2**255 - 19), is_prime(2**255 - 21)
        (True, False)
    """
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
    if number < 2 or any(number % b == 0 for b in bases):
        return number in bases
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in bases:
        x = pow(base, odd, number)
        if x not in (1, number - 1) and all((x := x * x % number) != number - 1 for _ in range(twos - 1)):
            return False
    return True


def correct(xs: Sequence[int], ys: Sequence[int], threshold: int, prime: int = PRIME) -> tuple[int, list[int]] | None:
    """Return (secret, x of the wrong shares), or None if too many shares are wrong.

    Gao's decoder: among m shares, up to (m - t) // 2 wrong ones are located.

    Args:
        xs: evaluation points, distinct and not 0.
        ys: shares, possibly with wrong ones among them.
        threshold: t.
        prime: size of the field.

    Raises:
        ConfigError: the points are not distinct, or one is 0 modulo the prime.
    """
    if 0 in (reduced := {x % prime for x in xs}) or len(reduced) < len(xs):
        raise ConfigError("the x coordinates of shares must be distinct and not 0, modulo the prime")
    size = len(xs)
    whole = [1]  # the polynomial that is 0 at every place, lowest coefficient first
    for x in xs:
        whole = _add_shifted(whole, -x, prime)
    slopes = [math.prod([x - other for other in xs if other != x]) % prime for x in xs]
    through = [0] * size
    for x, y, slope in zip(xs, ys, slopes, strict=True):
        factor, carry = y * pow(slope, -1, prime) % prime, 0
        for i in range(size, 0, -1):  # adds factor * whole / (X - x), divided on the way
            carry = (whole[i] + carry * x) % prime
            through[i - 1] = (through[i - 1] + factor * carry) % prime
    # the extended Euclid's remainders r = u * whole + v * through; stopped half-way, r / v is the polynomial
    before, now, v_before, v_now = whole, _trim(through), [0], [1]
    while 2 * (len(now) - 1) >= size + threshold:
        quotient, rest = _divide(before, now, prime)
        before, now = now, rest
        v_before, v_now = v_now, _trim(_minus_product(v_before, quotient, v_now, prime))
    polynomial, rest = _divide(now, v_now, prime)
    if any(rest) or len(polynomial) > threshold:
        return None
    wrong = [x for x, y in zip(xs, ys, strict=True) if _value(polynomial, x, prime) != y % prime]
    return (polynomial[0], wrong) if 2 * len(wrong) <= size - threshold else None


def corrections(shares: Mapping[int, int], threshold: int) -> Iterator[tuple[int, list[int]]]:
    """Yield (secret, holders of wrong shares): from all shares, then with each share omitted as a guess.

    The guess recovers the half of an error that the decoder loses when the number of redundant shares is odd.

    Args:
        shares: share by holder; holder u has the share at x = u + 1.
        threshold: t.
    """
    for out in (None, *shares):
        kept = {u: y for u, y in shares.items() if u != out}
        if len(kept) < threshold:
            return
        if found := correct([u + 1 for u in kept], list(kept.values()), threshold):
            yield found[0], [*([] if out is None else [out]), *(x - 1 for x in found[1])]


def _add_shifted(poly: Sequence[int], constant: int, prime: int) -> list[int]:
    """Return poly * (X + constant)."""
    return [(a + constant * b) % prime for a, b in zip([0, *poly], [*poly, 0], strict=True)]


def _trim(poly: list[int]) -> list[int]:
    while len(poly) > 1 and poly[-1] == 0:
        poly.pop()
    return poly


def _divide(above: Sequence[int], below: Sequence[int], prime: int) -> tuple[list[int], list[int]]:
    """Return quotient and remainder of two polynomials; `below` has no leading zero."""
    rest, lead = list(above), pow(below[-1], -1, prime)
    quotient = [0] * max(1, len(above) - len(below) + 1)
    for i in range(len(above) - len(below), -1, -1):
        factor = quotient[i] = rest[i + len(below) - 1] * lead % prime
        for j, b in enumerate(below):
            rest[i + j] = (rest[i + j] - factor * b) % prime
    return _trim(quotient), _trim(rest[: max(1, len(below) - 1)])


def _minus_product(start: Sequence[int], a: Sequence[int], b: Sequence[int], prime: int) -> list[int]:
    """Return start - a * b."""
    out = list(start) + [0] * (len(a) + len(b) - 1 - len(start))
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            out[i + j] = (out[i + j] - x * y) % prime
    return out


def _value(poly: Sequence[int], x: int, prime: int) -> int:
    value = 0
    for c in reversed(poly):
        value = (value * x + c) % prime
    return value


if not is_prime(PRIME):  # 0.3 ms once; over a ring that is not a field, shares would reveal information about their secret
    raise ConfigError(f"{PRIME} is not prime")


def rebuild(
    shares: Mapping[int, int],
    threshold: int,
    right: Callable[[bytes], bool],
    known: MutableMapping[tuple[int, ...], Sequence[int]],
) -> bytes | None:
    """Return the secret that shares give, 32 bytes, or None if no decoder finds one that is right.

    Args:
        shares: shares by holder; the evaluation point of holder u is u + 1. At least `threshold` of them.
        threshold: t.
        right: whether a secret is the one that its owner committed to.
        known: cache of interpolation weights by evaluation points; filled here.
    """
    places = tuple(u + 1 for u in list(shares)[:threshold])
    if places not in known:
        known[places] = weights(places)
    secret = combine(list(shares.values())[:threshold], known[places]).to_bytes(32, "little")
    if right(secret):
        return secret
    for value, wrong in corrections(shares, threshold):
        secret = value.to_bytes(32, "little")
        if right(secret):
            return secret
        if not wrong:  # all shares are consistent, so more are wrong than any decoder can correct
            break
    return None
