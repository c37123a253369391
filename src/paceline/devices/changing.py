"""Fleets whose devices change from round to round: generated, or read from a trace.

    changing:share=0.2,slow=2,shift=0,fade=0.2,depth=8,stay=5,vary=0.2,hot=0,burst=20,throttle=3
    trace:path=FILE.csv[,length=N]        lines ``client,round,up,down,slowdown``: from this round (from 1) on, the client
                                          has these bandwidths in Mbit/s and is this many times slower than an ordinary
                                          client; after its last round, or N rounds, the trace repeats

Clients that come and go are a participation process (`paceline.participation.processes`), which any fleet takes.
"""

from __future__ import annotations

import csv
import io
import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

from paceline.core.errors import ConfigError, DataFormatError
from paceline.core.random import derive
from paceline.devices.fleet import MBIT, Fleet, straggler_ranks
from paceline.devices.profile import COMPUTE, LATENCY, Profile
from paceline.participation.processes import Markov, Participation, Rates

__all__ = ["Changing", "TraceRow", "Traced", "read_fleet", "write_trace"]

_COLUMNS = ["client", "round", "up", "down", "slowdown"]


@dataclass(frozen=True)
class Changing(Fleet):
    """Slow clients that take turns, links that fade for some rounds, and devices that throttle when they are hot.

    Args:
        share: fraction of the clients whose compute is slower, drawn by the seed.
        slow: factor by which it is.
        shift: rounds after which they are drawn anew; 0 for never.
        fade: fraction of the rounds in which a client's link is faded, in the long run.
        depth: factor by which a faded link is slower.
        stay: mean length of a fade in rounds.
        vary: standard deviation of ln(bandwidth) from round to round.
        hot: fraction of the rounds in which a client is hot, for `stay` rounds on average.
        burst: seconds that a hot client works at full speed, in each round.
        throttle: factor by which it is slower afterwards.
    """

    share: float = 0.2
    slow: float = 2.0
    shift: int = 0
    fade: float = 0.2
    depth: float = 8.0
    stay: float = 5.0
    vary: float = 0.2
    hot: float = 0.0
    burst: float = 20.0
    throttle: float = 3.0

    name: ClassVar[str] = "changing"

    def __post_init__(self) -> None:
        super().__post_init__()
        wrong = [f"{n}={v} must be at least 0 and below 1" for n in ("fade", "hot") if not 0 <= (v := getattr(self, n)) < 1]
        wrong += [f"{n}={v} must be at least 1" for n in ("slow", "depth", "throttle", "stay") if not (v := getattr(self, n)) >= 1]
        if not 0 <= self.share <= 1:
            wrong.append(f"share={self.share} must be from 0 to 1")
        if self.shift < 0 or not self.burst >= 0 or not 0 <= self.vary <= 3:
            wrong.append(f"shift={self.shift}, burst={self.burst} must be at least 0, and vary={self.vary} from 0 to 3")
        if wrong:
            raise ConfigError(f"fleet changing: {'; '.join(wrong)}")
        for rate in (self.fade, self.hot):
            self._phases("check", rate)

    def profile(self, client: int, round: int) -> Profile:
        """Return the device of `client` in `round`."""
        self._check(client)
        slowdown = self.slow if self.is_slow(client, round) else 1.0
        faded = self.depth if self._fades and self._fades.available(client, round) else 1.0
        hot = self._heats is not None and self._heats.available(client, round)
        up, down = (self.link / faded * math.exp(self.vary * self._normal(way, client, round)) for way in ("up", "down"))
        changes = {"burst": self.burst, "throttle": self.throttle} if hot else {}
        return self._base(compute=self.compute / slowdown, up=up, down=down, slowdown=slowdown, **changes)

    def is_slow(self, client: int, round: int) -> bool:
        """Return whether the compute of `client` is slow in `round`."""
        period = (round - 1) // self.shift if self.shift else 0
        count = math.floor(self.share * self.num_clients + 0.5)
        return bool(straggler_ranks(self.num_clients, count, derive(self.seed, "fleet", "slow", period))[client] >= 0)

    def describe(self) -> str:
        """Return a one-line description of the fleet."""
        text = f"{super().describe()}; {self.share:.0%} slower by x{self.slow:g}"
        text += f" (others every {self.shift} rounds)" if self.shift else ""
        text += f", links x{self.depth:g} slower in {self.fade:.0%} of the rounds" if self.fade else ""
        return text + (f", hot in {self.hot:.0%} (x{self.throttle:g} after {self.burst:g} s)" if self.hot else "")

    @cached_property
    def _fades(self) -> Markov | None:
        return self._phases("fade", self.fade)

    @cached_property
    def _heats(self) -> Markov | None:
        return self._phases("hot", self.hot)

    def _phases(self, name: str, rate: float) -> Markov | None:
        """Return the chain of a state that lasts `stay` rounds on average, in a part `rate` of the rounds."""
        if not rate:
            return None
        begins = rate / (1.0 - rate) / self.stay
        if begins > 1.0:
            raise ConfigError(f"fleet changing: stay={self.stay} is too short for {rate:.0%} of the rounds; raise stay")
        return Markov(Rates((rate,), self.num_clients), derive(self.seed, "fleet", name), begins)


class TraceRow(NamedTuple):
    """A device from a round on: bandwidths in Mbit/s, and how many times slower than an ordinary client it is."""

    round: int
    up: float
    down: float
    slowdown: float


@dataclass(frozen=True)
class Traced(Fleet):
    """Links and speeds read from a trace; see `read_fleet`.

    Args:
        rows: rows of each client in order; each holds until the next one, the last of a repetition until the first.
        length: rounds after which the trace repeats.
    """

    rows: Mapping[int, tuple[TraceRow, ...]] = field(default_factory=dict, repr=False)
    length: int = 1

    name: ClassVar[str] = "trace"

    def profile(self, client: int, round: int) -> Profile:
        """Return the device of `client` in `round`."""
        self._check(client)
        rows, number = self.rows[client], (round - 1) % self.length + 1
        row = rows[bisect_right(rows, number, key=lambda row: row.round) - 1]  # before the first row the last one holds
        compute = self.compute / row.slowdown
        return self._base(compute=compute, up=row.up * MBIT, down=row.down * MBIT, slowdown=row.slowdown)

    def describe(self) -> str:
        """Return a one-line description of the fleet."""
        return f"{self.name}: {self.num_clients} clients of {self.compute / 1e9:g} GFLOP/s at most, {self.length} rounds"


def read_fleet(
    path: str,
    num_clients: int,
    seed: int = 0,
    participation: Participation | None = None,
    length: int | None = None,
    compute: float = COMPUTE,
    latency: float = LATENCY,
    overhead: float = 0.0,
    churn: float = 0.0,
) -> Traced:
    """Return the fleet of a trace.

    Args:
        path: CSV file with the header ``client,round,up,down,slowdown``, see the module docstring.
        num_clients: size of the population; further clients are left out.
        seed: seed of the run.
        participation: process of availability.
        length: rounds after which the trace repeats; by default, its last round.
        compute, latency, overhead, churn: see `Fleet`.

    Raises:
        DataFormatError: a line is malformed; the message names it.
        ConfigError: the file cannot be read, has too few clients, or is longer than `length`.
    """
    rows, end = _parsed(path)
    if missing := [client for client in range(num_clients) if client not in rows]:
        raise ConfigError(f"fleet trace {path} has no lines of {len(missing)} of {num_clients} clients, such as {missing[0]}")
    if length is not None and length < end:
        raise ConfigError(f"fleet trace {path}: length={length} must be at least its last round, {end}")
    known = {client: rows[client] for client in range(num_clients)}
    return Traced(
        num_clients,
        seed,
        compute,
        latency=latency,
        overhead=overhead,
        churn=churn,
        participation=participation or Participation(),
        rows=known,
        length=end if length is None else length,
    )


def write_trace(path: str | Path, fleet: Fleet, rounds: int) -> None:
    """Write the links and speeds of a fleet as a trace, a line for each change.

    Args:
        path: the file.
        fleet: any fleet; what a trace does not contain (latency, hot phases, availability) is left out.
        rounds: rounds to write.
    """
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(_COLUMNS)
    for client in range(fleet.num_clients):
        before: tuple[float, ...] = ()
        for number in range(1, rounds + 1):
            device = fleet.profile(client, number)
            now = (device.up / MBIT, device.down / MBIT, fleet.compute / device.compute)
            if now != before:
                table.writerow([client, number, *(repr(value) for value in now)])
            before = now
    Path(path).write_text(out.getvalue(), encoding="utf-8")


def _parsed(path: str) -> tuple[dict[int, tuple[TraceRow, ...]], int]:
    """Return the rows of each client, and the last round."""
    found: dict[int, dict[int, TraceRow]] = {}
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"fleet trace {path} cannot be read: {error}") from error
    lines = csv.reader(text.splitlines())
    if [cell.strip() for cell in next(lines, [])] != _COLUMNS:
        raise DataFormatError(f"{path}: line 1 must be the header {','.join(_COLUMNS)}")
    for cells in filter(None, lines):
        where = f"{path}: line {lines.line_num}"
        try:
            client, number = (int(cell) for cell in cells[:2])
            up, down, slowdown = (float(cell) for cell in cells[2:])
        except ValueError:
            raise DataFormatError(f"{where} must be five numbers {','.join(_COLUMNS)}: {','.join(cells)[:60]}") from None
        if client < 0 or number < 1 or not (0 < up < math.inf and 0 < down < math.inf and 0 < slowdown < math.inf):
            raise DataFormatError(f"{where}: rounds start at 1, and bandwidths and slowdown are above 0")
        if number in found.setdefault(client, {}):
            raise DataFormatError(f"{where}: client {client} has a second line of round {number}")
        found[client][number] = TraceRow(number, up, down, slowdown)
    if not found:
        raise DataFormatError(f"{path}: the trace has no lines")
    rows = {client: tuple(each[number] for number in sorted(each)) for client, each in found.items()}
    return rows, max(row.round for each in rows.values() for row in each)
