"""Who is to blame for a secure sum that came to nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping

__all__ = ["culprits"]


def culprits(accusations: Mapping[int, Collection[int]]) -> dict[int, str]:
    """Return whom to leave out so that no accusation is left, and why.

    Either the accused sealed nonsense or the accuser lies; nobody else can tell. Whoever is part of most accusations
    goes first: somebody who cheats all neighbours, or accuses all of them, goes alone. Of two that only accuse each
    other both go, so each lie costs the liar its own place.

    Args:
        accusations: whose shares each client could not open.

    >>> culprits({1: [4], 2: [4], 3: [4]})
    {4: 'clients [1, 2, 3] could not open its shares'}
    >>> sorted(culprits({4: [1, 2, 3]}))
    [4]
    """
    disputes = {frozenset((accuser, accused)) for accuser, of in accusations.items() for accused in of if accused != accuser}
    out: dict[int, str] = {}
    while disputes:
        degrees: dict[int, int] = {}
        for pair in disputes:
            for client in pair:
                degrees[client] = degrees.get(client, 0) + 1
        most = max(degrees.values())
        worst = sorted(client for client, degree in degrees.items() if degree == most)
        for client in worst if most == 1 else worst[:1]:
            by = sorted(a for a, of in accusations.items() if client in of)
            said = f"it says that shares of {sorted(accusations.get(client, ()))} are wrong"
            out[client] = f"clients {by} could not open its shares" if by else said
        disputes = {pair for pair in disputes if not pair & out.keys()}
    return dict(sorted(out.items()))
