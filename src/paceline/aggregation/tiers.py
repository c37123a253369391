"""Tiers of the clients of a nested sum: who receives and sends which segments of the model, and which rules that has to meet.

Every party derives the same tiers from what the clients declared, so the server decides nothing. A tier is the index of
a fraction of the units; a client of tier m owns the segments m to L - 1, see `paceline.core.nested`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from paceline.core.errors import QuorumError

__all__ = ["TierError", "TierRules", "Tiers", "fill_rank"]


class TierError(QuorumError):
    """Too few clients are left in a tier; the round can be repeated without it.

    Args:
        message: what is missing.
        left: tiers that the next attempt may use, so that the one at fault is merged with another; empty if there is none.
    """

    def __init__(self, message: str, left: Sequence[int]) -> None:
        super().__init__(message)
        self.left = tuple(left)


@dataclass(frozen=True)
class TierRules:
    """Rules for tiers and segments.

    Args:
        members: smallest number of clients in a tier: the sums of the weights of two neighbouring segments reveal the weight
            of a tier.
        contributors: smallest number of clients that have trained a segment, n_min or more.
        neighbours: smallest number of neighbours of each owner that own the segment as well, see `graph.least_owners`.
    """

    members: int = 1
    contributors: int = 1
    neighbours: int = 0


def fill_rank(client: int) -> bytes:
    """Return the place of a client in the public order in which clients fill a smaller tier.

    It is the same in all rounds, and no server chooses it. With other clients in each round, the differences of the tier's weights
    would be those of two clients, and all of them together would determine every weight.
    """
    return hashlib.sha256(b"paceline-fill-v1" + client.to_bytes(8, "little")).digest()


@dataclass(frozen=True)
class Tiers:
    """Tiers of the clients of one sum.

    Args:
        wanted: tier that each client declared: the part that it can train.
        owned: tier whose segments each client receives and sends. Above the declared tier (a smaller index) the client sends
            zeros where it trained nothing; below it, the client trains the smaller part, as do clients that fill a tier.
        count: number of tiers.
        rules: rules that the tiers meet.
    """

    wanted: Mapping[int, int]
    owned: Mapping[int, int]
    count: int
    rules: TierRules

    @staticmethod
    def of(
        wanted: Mapping[int, int],
        allowed: Sequence[int],
        count: int,
        rules: TierRules,
        near: Mapping[int, Collection[int]] | None = None,
    ) -> Tiers:
        """Derive the tiers from what the clients declared, by merging and filling tiers until the rules hold.

        A client gets its declared tier, or the next smaller part that is allowed. A tier with too few members is merged with the
        next smaller part, if at least half of the members then declared that or less, and otherwise the smaller one with the larger,
        for which its members send zeros where they trained nothing. The smallest one is filled with members of the next larger one,
        the same ones in each round (`fill_rank`), under the same condition; if the rules do not allow that, it is merged with the
        larger. Segments that too few clients train are not sent. Where too few neighbours own a segment, the next tier is merged
        into those that do.

        Args:
            wanted: declared tier by client.
            allowed: tiers that may be used, ascending.
            count: number of tiers.
            rules: rules to meet.
            near: neighbours of each client in the masking graph; None for no graph.

        Raises:
            QuorumError: the rules cannot be met by so few clients.
        """
        owned = {c: next((a for a in allowed if a >= w), allowed[-1]) for c, w in wanted.items()}
        while True:
            tiers = Tiers(wanted, owned, count, rules)
            changed = tiers._without_small_tiers() or tiers._without_rare_segments() or tiers._with_more_neighbours(near)
            if changed is None:
                return tiers
            owned = changed

    def fraction_index(self, client: int) -> int:
        """Return the tier that a client trains: the smaller one of its declared and its assigned tier."""
        return max(self.wanted[client], self.owned[client])

    def owners(self, segment: int, among: Collection[int] | None = None) -> list[int]:
        """Return the clients that send a segment, ascending."""
        return [c for c in sorted(self.owned if among is None else among) if self.owned[c] <= segment]

    def trainers(self, segment: int, among: Collection[int] | None = None) -> list[int]:
        """Return the clients that train a segment, ascending; the other owners send zeros."""
        return [c for c in sorted(self.owned if among is None else among) if self.fraction_index(c) <= segment]

    def members(self, tier: int, among: Collection[int] | None = None) -> list[int]:
        """Return the clients of a tier, ascending."""
        return [c for c in sorted(self.owned if among is None else among) if self.owned[c] == tier]

    def missing(self, client: int, near: Collection[int]) -> str:
        """Return why a client must not send the segments of its tier to a sum with these neighbours; empty if it may."""
        segment = self.owned[client]
        left = sum(1 for c in near if self.owned[c] <= segment)
        if left >= self.rules.neighbours:
            return ""
        return f"only {left} neighbours own segment {segment} of the model; the minimum is {self.rules.neighbours}"

    def check(self, among: Collection[int]) -> None:
        """Check the clients that are left in a sum.

        Raises:
            TierError: a tier has fewer members, or a segment fewer contributors, than the rules require.
        """
        inhabited = sorted({self.owned[c] for c in among})
        for tier in inhabited:
            if (left := len(self.trainers(tier, among))) < self.rules.contributors:
                raise TierError(
                    f"only {left} clients are left that train segment {tier} of the model; the minimum is {self.rules.contributors}",
                    self._smaller(among, inhabited),
                )
            if len(inhabited) > 1 and (left := len(self.members(tier, among))) < self.rules.members:
                raise TierError(
                    f"only {left} clients are left in tier {tier}; a tier has none or at least {self.rules.members} "
                    "(least_contributors), because its weight can be computed from the opened sums",
                    [other for other in inhabited if other != tier],
                )

    def _smaller(self, among: Collection[int], inhabited: Sequence[int]) -> list[int]:
        """Return the tiers whose segments enough of the clients train."""
        enough = [s for s in range(self.count) if len(self.trainers(s, among)) >= self.rules.contributors]
        return [tier for tier in inhabited if tier in enough] or enough[:1]

    # -- merging -------------------------------------------------------------------------------
    @property
    def _inhabited(self) -> list[int]:
        return sorted(set(self.owned.values()))

    def _moved(self, move: Mapping[int, int]) -> dict[int, int]:
        return {c: move.get(tier, tier) for c, tier in self.owned.items()}

    def _without_small_tiers(self) -> dict[int, int] | None:
        tiers = self._inhabited
        for place, tier in enumerate(tiers if len(tiers) > 1 else ()):
            if len(self.members(tier)) < self.rules.members:
                if place + 1 < len(tiers):
                    smaller = tiers[place + 1]
                    down = self._moved({tier: smaller})
                    return down if self._declared(smaller, down) else self._moved({smaller: tier})
                return self._filled(tier, tiers[place - 1]) or self._moved({tier: tiers[place - 1]})
        return None

    def _filled(self, tier: int, larger: int) -> dict[int, int] | None:
        """Return the tiers after members of the `larger` part were moved to a tier with too few; None if the rules forbid it."""
        members, source = self.members(tier), sorted(self.members(larger), key=fill_rank)
        few = self.rules.members - len(members)
        filled = {**self.owned, **dict.fromkeys(source[:few], tier)}
        trainers = Tiers(self.wanted, filled, self.count, self.rules).trainers(larger)
        enough = len(source) - few >= self.rules.members and len(trainers) >= self.rules.contributors
        return filled if enough and self._declared(tier, filled) and self._declared(larger, filled) else None

    def _declared(self, tier: int, owned: Mapping[int, int]) -> bool:
        """Return whether at least half of the members that a tier has, or needs, declared it or a smaller one."""
        members = [c for c, o in owned.items() if o == tier]
        return 2 * sum(1 for c in members if self.wanted[c] >= tier) >= max(len(members), self.rules.members)

    def _without_rare_segments(self) -> dict[int, int] | None:
        top = self._inhabited[0]
        if len(self.trainers(top)) >= self.rules.contributors:
            return None
        for tier in range(top + 1, self.count):
            lower = Tiers(self.wanted, {c: max(tier, o) for c, o in self.owned.items()}, self.count, self.rules)
            if len(lower.trainers(tier)) >= self.rules.contributors:
                return dict(lower.owned)
        raise QuorumError(f"{len(self.owned)} clients are too few: a segment of the model needs {self.rules.contributors}")

    def _with_more_neighbours(self, near: Mapping[int, Collection[int]] | None) -> dict[int, int] | None:
        tiers = self._inhabited
        for place, tier in enumerate(tiers[:-1]):
            if near is not None and any(self.missing(c, near[c]) for c in self.members(tier)):
                return self._moved({tiers[place + 1]: tier})
        return None
