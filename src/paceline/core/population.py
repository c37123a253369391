"""The population of a federation: available clients of a round, and the random streams of its calls."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from paceline.core.engine import Availability, CallInfo, Engine
from paceline.core.errors import CohortError, QuorumError
from paceline.core.exclusions import Exclusions
from paceline.core.failures import account
from paceline.core.generators import reseed_nested
from paceline.core.params import Params
from paceline.core.random import derive, numpy_rng
from paceline.core.wording import setting

__all__ = ["MAX_ATTEMPTS", "Population"]

MAX_ATTEMPTS = 3
"""Attempts at a round that lost its quorum, each with a new cohort and new keys."""


class Population:
    """The clients of a federation in the current round.

    Args:
        engine: runs client functions.
        fleet: decides which clients are available.
        seed: seed of the run.
        cohort: default cohort size.
    """

    def __init__(self, engine: Engine, fleet: Availability, *, seed: int = 0, cohort: int = 10) -> None:
        self.engine, self.fleet = engine, fleet
        self.seed, self.cohort_size = seed, cohort
        self.round = self.attempt = self.incarnation = 0
        self.excluded = Exclusions()
        self.opened: set[int] = set()
        """Clients whose sum was opened in this round: another attempt prefers other clients, so that no reply is opened twice."""
        self.lost: dict[int, str] = {}
        """Clients whose replies failed or were refused in this round, with the reason."""
        self.scaled: Params | None = None
        """The initial model with the scaling of its inputs, where that is measured on the clients."""
        self._open, self._asked = CallInfo(), 0
        self._calls = self._verbs = self.works = 0
        """Operations on clients: calls and verbs of this round, and all of this process that may change what clients store."""
        self._streams: dict[str, int] = {}
        self._collecting = False

    @property
    def last_attempt(self) -> bool:
        """Whether a further `QuorumError` in this round may end the run."""
        return self.attempt >= MAX_ATTEMPTS - 1

    @property
    def num_clients(self) -> int:
        """Number of clients in the population."""
        return self.engine.num_clients

    def init_params(self) -> Params:
        """Return the task's initial model, with the scaling of inputs that was measured before round 1."""
        return self.engine.init_params() if self.scaled is None else self.scaled.clone()

    def start_round(self, round: int, attempt: int = 0) -> None:
        """Begin round `round` (from 1); reset random streams and call numbers."""
        again = round == self.round and attempt > self.attempt
        if not again:
            self.opened.clear()
        self.round, self.attempt, self._calls, self._verbs = round, attempt, 0, 0
        self.lost = self.lost if attempt else {}
        self._streams.clear()
        self._redraw()

    def sample(self, size: int | None = None, among: Sequence[int] | None = None) -> list[int]:
        """Draw a cohort without replacement from the available clients.

        Args:
            size: number of clients; None uses the default cohort size.
            among: client ids to draw from; None draws from the population.

        Returns:
            Client ids, sorted; fewer than `size` if fewer are available.

        Raises:
            CohortError: if `size` exceeds the population, or no client is available.
        """
        size = self.cohort_size if size is None else size
        population = self.num_clients if among is None else len(among)
        if not 1 <= size <= population:
            told = f"a cohort of {size} cannot be drawn from {population} clients"
            raise CohortError(f"{told}; set {setting('cohort')} to at most {population}")
        picked = self.available(size, among)
        if not picked:
            raise CohortError(f"round {self.round}: no client is available")
        return picked

    def available(self, most: int | None = None, among: Sequence[int] | None = None) -> list[int]:
        """Return the available clients of this round, sorted by id: all, or at most `most`, drawn without replacement.

        The list may be empty.
        """
        if self.attempt and self.opened and most is not None:
            fresh = [c for c in (range(self.num_clients) if among is None else among) if c not in self.opened]
            among = fresh if len(fresh) >= most else among
        population = self.num_clients if among is None else len(among)
        rng = numpy_rng(self.seed, "cohort", self.round, self.attempt, self._calls)
        if among is None and self.fleet.always and not self.excluded:
            return sorted(rng.permutation(population)[:most].tolist())
        picked: list[int] = []
        for place in rng.permutation(population):
            client = int(place if among is None else among[int(place)])
            if self.fleet.available(client, self.round) and not self.excluded.sits_out(client, self.round):
                picked.append(client)
                if len(picked) == most:
                    break
        return sorted(picked)

    def stream(self, function: str) -> str:
        """Return the name of the random streams of the next call of `function` in this round.

        Streams depend only on the method's own calls, not on protocol messages in between. Held work that is collected has
        the same stream in every attempt, so that a client can detect a repeated request.
        """
        attempt, number = self.place(function)
        return f"{attempt}/{function}/{number}"

    def place(self, function: str) -> tuple[int, int]:
        """Return the parts of `stream`: the attempt, and the number of the next call of `function` in this round."""
        number = self._streams[function] = self._streams.get(function, 0) + 1
        return 0 if self._collecting else self.attempt, number

    @contextlib.contextmanager
    def _operation(self, over: Sequence[int]) -> Iterator[set[int]]:
        """Begin an operation on clients; yield the set to fill with those that it counts.

        At the end, withdraw what the others staged in it (`Memory.stage`).
        """
        self._open, self._asked, self._verbs, self.works = CallInfo(), len(over), self._verbs + 1, self.works + 1
        counted: set[int] = set()
        try:
            yield counted
        except QuorumError:
            self.engine.withdraw(self._verbs, list(over))
            raise
        if lost := [client for client in over if client not in counted]:
            self.engine.withdraw(self._verbs, lost)

    @contextlib.contextmanager
    def judging(self) -> Iterator[None]:
        """Within this context, operations are evaluations, which change nothing that clients store."""
        before = self.works
        try:
            yield
        finally:
            self.works = before

    def too_few(self, what: str) -> QuorumError:
        """Return the error of a sum or call with too few replies: `what`, and the reasons of dropped clients."""
        return QuorumError(f"{what}; {account(self._open.dropped, self._asked)}" if self._open.dropped else what)

    def adjust_calls(self, more: int) -> None:
        """Count calls that a protocol has saved, or fewer if it has repeated some: cohorts drawn later do not depend on either."""
        self._calls += more

    @property
    def serial(self) -> int:
        """A number that increases with every call of a round, every attempt, and every start of the server (`incarnation`)."""
        return self.incarnation * 10**9 + self.attempt * 100_000 + self._calls

    def _redraw(self) -> None:
        """Reseed the server's global generators, so that a method's draws depend only on the round and its calls."""
        reseed_nested(derive(self.seed, "server", self.round, self.attempt, self._verbs))
