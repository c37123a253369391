"""Participation processes: which clients are available in which round, each a pure function of client and round.

    always
    bernoulli:RATES                        available with its rate, drawn independently for each client and round
    markov:RATES,step=0.05                 becomes available with probability a, and unavailable with a (1/p - 1): long
                                           phases of either, available in a fraction p of the rounds; if the second
                                           probability exceeds 1, it becomes unavailable for sure, and a is smaller
    cyclic:RATES,length=100                unavailable, then available for round(length * p) rounds, from a random offset
    diurnal:RATES,period=24,swing=1,zones=0  bernoulli with p (1 + swing cos(2 pi (round / period - phase))), clipped to
                                           [0, 1]; phases are random per client, or those of `zones` zones of neighbours
    trace:FILE.csv[,length=N]              lines ``client,first,last`` of rounds (from 1) in which a client is available;
                                           after its last round, or N rounds, the trace repeats

RATES are ``0.3`` (all clients), ``1/0.1`` (groups of neighbouring clients, as in the partition ``groups``),
``0.05-1`` (linear from the first client to the last), or ``labels`` with the options mean=0.1, least=0.02 and
alpha=0.1: p_n = max(least, C mean <mix_n, kappa>) with the client's class mix and one kappa ~ Dirichlet(alpha, ...),
so that rare clients have different data (the simulator of Wang and Ji, ICLR 2024). A client with rate 1 is always
available.
"""

from __future__ import annotations

import csv
import math
import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from paceline import registry
from paceline.core.errors import ConfigError, DataFormatError
from paceline.core.random import derive, numpy_rng

__all__ = [
    "Bernoulli",
    "Cyclic",
    "Diurnal",
    "Markov",
    "Participation",
    "RateProcess",
    "Rates",
    "Trace",
    "load_participation",
    "read_trace",
]

Mix = Callable[[], "np.ndarray[Any, Any]"]
"""Returns the number of samples of each class on each client, shape [clients, classes]."""


@dataclass(frozen=True)
class Rates:
    """Fraction of the rounds in which each client is available.

    Args:
        values: one for all clients, one for each group, first and last, or one for each client.
        num_clients: size of the population.
        evenly: whether `values` are those of the first and the last client, with linear interpolation in between.

    Raises:
        ConfigError: a rate is not in (0, 1], or there are more groups than clients.

    Example:
        >>> rates = Rates((1.0, 0.1), num_clients=4)
        >>> [rates(client) for client in range(4)]
        [1.0, 1.0, 0.1, 0.1]
    """

    values: tuple[float, ...]
    num_clients: int
    evenly: bool = False

    def __post_init__(self) -> None:
        if not self.values or not all(0 < v <= 1 for v in self.values):
            raise ConfigError(f"participation: rates must be above 0 and at most 1, not {list(self.values)[:5]}")
        if not self.evenly and len(self.values) > self.num_clients:
            raise ConfigError(f"participation: {self.num_clients} clients cannot form {len(self.values)} groups")

    def __call__(self, client: int) -> float:
        """Return a client's rate."""
        if self.evenly:
            first, last = self.values
            return first + (last - first) * client / max(self.num_clients - 1, 1)
        return self.values[client * len(self.values) // self.num_clients]


@dataclass(frozen=True)
class Participation:
    """All clients are available in every round; base class of the other processes."""

    name: ClassVar[str] = "always"

    def available(self, client: int, round: int) -> bool:
        """Return whether `client` is available in `round` (from 1)."""
        return True

    def rate(self, client: int) -> float:
        """Return the long-run fraction of rounds in which `client` is available."""
        return 1.0


@dataclass(frozen=True)
class RateProcess(Participation):
    """Base of processes in which each client has a rate.

    Args:
        rates: of the clients.
        seed: of the run.
    """

    rates: Rates
    seed: int

    def rate(self, client: int) -> float:
        """Return the part of the rounds in which `client` is there, in the long run."""
        return self.rates(client)

    def _uniform(self, *path: int | str) -> float:
        """Return the uniform random number in (0, 1) of the stream `path`."""
        return ((derive(self.seed, "participation", self.name, *path) >> 11) + 0.5) / 2.0**52


@dataclass(frozen=True)
class Bernoulli(RateProcess):
    """Independent draws."""

    name: ClassVar[str] = "bernoulli"

    def available(self, client: int, round: int) -> bool:
        """Return whether `client` is available in `round`."""
        return self._uniform(client, round) < self.rates(client)


@dataclass(frozen=True)
class Markov(RateProcess):
    """A chain of two states for each client, at its long-run rate from the first round on.

    Args:
        step: probability a that an unavailable client becomes available.
    """

    step: float = 0.05
    name: ClassVar[str] = "markov"

    def __post_init__(self) -> None:
        if not 0 < self.step <= 1:
            raise ConfigError(f"participation markov: step={self.step} must be above 0 and at most 1")

    def chances(self, client: int) -> tuple[float, float]:
        """Return the probabilities of being available next, given (unavailable, available) now."""
        come, go = self.step, self.step * (1.0 / self.rates(client) - 1.0)
        return (come / go, 0.0) if go > 1.0 else (come, 1.0 - go)

    def available(self, client: int, round: int) -> bool:
        """Return whether `client` is available in `round`.

        Walks back to the last draw that decides regardless of the previous state, or to the first round.
        """
        away, there = self.chances(client)
        flipped = False
        for number in range(round, 1, -1):
            draw = self._uniform(client, number)
            if draw < min(away, there):
                return not flipped
            if draw >= max(away, there):
                return flipped
            flipped ^= there < away  # between the two thresholds the state is kept or inverted
        return (self._uniform(client, 1) < self.rates(client)) != flipped


@dataclass(frozen=True)
class Cyclic(RateProcess):
    """Away, then there, by turns.

    Args:
        length: rounds per cycle.
    """

    length: int = 100
    name: ClassVar[str] = "cyclic"

    def __post_init__(self) -> None:
        if self.length < 2:
            raise ConfigError(f"participation cyclic: length={self.length} must be at least 2 rounds")

    def _turns(self, client: int) -> tuple[int, int]:
        """Return the rounds per cycle (unavailable, available)."""
        if self.rates(client) >= 1:
            return 0, self.length
        there = max(1, math.floor(self.length * self.rates(client) + 0.5))
        return max(1, self.length - there), there

    def rate(self, client: int) -> float:
        """Return the fraction of a cycle in which `client` is available."""
        away, there = self._turns(client)
        return there / (away + there)

    def available(self, client: int, round: int) -> bool:
        """Return whether `client` is available in `round`."""
        away, there = self._turns(client)
        start = int(self._uniform(client) * (away + there))
        return (round - 1 + start) % (away + there) >= away


@dataclass(frozen=True)
class Diurnal(RateProcess):
    """Days and nights.

    Args:
        period: rounds per day.
        swing: amplitude from 0 (constant) up; at 1 no client is available at night.
        zones: number of time zones, shared by neighbouring clients; 0 draws a phase for each client.
    """

    period: int = 24
    swing: float = 1.0
    zones: int = 0
    name: ClassVar[str] = "diurnal"

    def __post_init__(self) -> None:
        if self.period < 2 or not 0 <= self.swing < math.inf or not 0 <= self.zones <= self.rates.num_clients:
            given = f"period={self.period}, swing={self.swing}, zones={self.zones}"
            raise ConfigError(f"participation diurnal: {given}; set period >= 2, swing >= 0, 0 <= zones <= clients")

    def chance(self, client: int, round: int) -> float:
        """Return the probability that `client` is available in `round`."""
        phase = client * self.zones // self.rates.num_clients / self.zones if self.zones else self._uniform(client)
        wave = math.cos(2.0 * math.pi * (round / self.period - phase))
        return min(max(self.rates(client) * (1.0 + self.swing * wave), 0.0), 1.0)

    def rate(self, client: int) -> float:
        """Return the mean probability over a day."""
        return sum(self.chance(client, r) for r in range(self.period)) / self.period

    def available(self, client: int, round: int) -> bool:
        """Return whether `client` is available in `round`."""
        return self._uniform(client, round) < self.chance(client, round)


@dataclass(frozen=True)
class Trace(Participation):
    """Availability read from a file.

    Args:
        spans: for each client, the disjoint (first, last) rounds of its presence, in order.
        length: rounds after which the trace repeats.
    """

    spans: dict[int, tuple[tuple[int, int], ...]] = field(repr=False)
    length: int
    name: ClassVar[str] = "trace"

    def rate(self, client: int) -> float:
        """Return the fraction of the trace in which `client` is available."""
        return sum(last - first + 1 for first, last in self.spans.get(client, ())) / self.length

    def available(self, client: int, round: int) -> bool:
        """Return whether `client` is available in `round`."""
        stays, number = self.spans.get(client, ()), (round - 1) % self.length + 1
        place = bisect_right(stays, (number, self.length))
        return place > 0 and number <= stays[place - 1][1]


def read_trace(path: str | Path, num_clients: int, length: int | None = None) -> Trace:
    """Read a participation trace.

    Args:
        path: CSV file with the header ``client,first,last``: intervals of rounds, from 1, in which a client is available.
        num_clients: size of the population; further clients are left out.
        length: rounds after which the trace repeats; by default, its last round.

    Raises:
        DataFormatError: a line is malformed; the message names it.
        ConfigError: the file cannot be read, has too few clients, or is longer than `length`.
    """
    spans: dict[int, list[tuple[int, int]]] = {}
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"participation trace {path} cannot be read: {error}") from error
    lines = csv.reader(text.splitlines())
    if [cell.strip() for cell in next(lines, [])] != ["client", "first", "last"]:
        raise DataFormatError(f"{path}: line 1 must be the header client,first,last")
    for row in filter(None, lines):
        if len(row) != 3 or not all(re.fullmatch(r"\d{1,9}", cell.strip()) for cell in row):
            raise DataFormatError(
                f"{path}: line {lines.line_num} must be three whole numbers client,first,last: {','.join(row)[:60]}"
            )
        client, first, last = (int(cell) for cell in row)
        if not 1 <= first <= last:
            raise DataFormatError(f"{path}: line {lines.line_num}: rounds {first} to {last} must satisfy 1 <= first <= last")
        spans.setdefault(client, []).append((first, last))
    if not spans:
        raise DataFormatError(f"{path}: the trace has no intervals")
    if max(spans) + 1 < num_clients:
        raise ConfigError(f"participation trace {path} has {max(spans) + 1} clients, but the run has {num_clients}")
    end = max(last for stays in spans.values() for _, last in stays)
    if length is not None and length < end:
        raise ConfigError(f"participation trace {path}: length={length} must be at least its last round, {end}")
    return Trace({c: _joined(s) for c, s in spans.items() if c < num_clients}, end if length is None else length)


def _joined(stays: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return intervals in order, with overlapping or adjacent ones merged."""
    out: list[tuple[int, int]] = []
    for first, last in sorted(stays):
        if out and first <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], last))
        else:
            out.append((first, last))
    return tuple(out)


_LABELS: dict[str, float] = {"mean": 0.1, "least": 0.02, "alpha": 0.1}


def load_participation(spec: str, num_clients: int, seed: int = 0, mix: Mix | None = None) -> Participation:
    """Return the process described by a text such as ``"markov:0.05-1,step=0.1"``.

    Args:
        spec: see the module docstring.
        num_clients: size of the population.
        seed: seed of the run.
        mix: samples of each client and class, for the rates ``labels``.

    Raises:
        UnknownNameError: unknown process or option.
        ConfigError: invalid value.

    Example:
        >>> load_participation("bernoulli:0.5", num_clients=10).rate(3)
        0.5
    """
    read = registry.parse("participation", spec)
    takes = registry.parameters(registry.load("participation", read.name))
    offered: dict[str, Any] = {"num_clients": num_clients, "seed": seed}
    if "rates" in takes:
        own = {key: read.options.pop(key) for key in _LABELS if read.value == "labels" and key in read.options}
        labelled = {**_LABELS, **{key: _number(spec, str(value)) for key, value in own.items()}}
        offered["rates"] = (
            _by_labels(spec, num_clients, seed, mix, **labelled)
            if read.value == "labels"
            else _rates(spec, read.value, num_clients)
        )
    elif "path" in takes:
        offered["path"] = read.value
    elif read.value:
        raise ConfigError(f"participation {spec!r}: {read.name} does not take a value")
    made = registry.build("participation", read, offered)
    if not isinstance(made, Participation):
        raise ConfigError(f"participation {spec!r} is not a Participation; derive its class from paceline.devices.Participation")
    return made


def _rates(spec: str, text: str, num_clients: int) -> Rates:
    ends = re.split(r"(?<![eE])-", text)
    if len(ends) == 2:
        return Rates((_number(spec, ends[0]), _number(spec, ends[1])), num_clients, evenly=True)
    return Rates(tuple(_number(spec, part) for part in text.split("/")), num_clients)


def _by_labels(spec: str, num_clients: int, seed: int, mix: Mix | None, mean: float, least: float, alpha: float) -> Rates:
    if mix is None:
        raise ConfigError(f"participation {spec!r}: rates by label need the clients' class counts; pass mix=")
    if not (0 < mean <= 1 and 0 < least <= 1 and 0 < alpha < math.inf):
        raise ConfigError(f"participation {spec!r}: mean and least must be above 0 and at most 1, and alpha above 0")
    table = np.asarray(mix(), dtype=np.float64)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1.0)
    kappa = numpy_rng(seed, "participation", "labels").dirichlet(np.full(table.shape[1], alpha))
    rates = np.clip(table.shape[1] * mean * (shares @ kappa), least, 1.0)
    return Rates(tuple(rates.tolist()), num_clients)


def _number(spec: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"participation {spec!r}: {text!r} is not a number") from None
    if not math.isfinite(value):
        raise ConfigError(f"participation {spec!r}: {text!r} is not a finite number")
    return value
