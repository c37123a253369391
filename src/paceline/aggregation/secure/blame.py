"""Attribution of a failed secure sum to the clients at fault."""

from __future__ import annotations

from collections.abc import Collection, Mapping

__all__ = ["culprits"]


def culprits(accusations: Mapping[int, Collection[int]]) -> dict[int, str]:
    """Return the clients to exclude so that no accusation is left, with the reasons.

    Either the accused sealed invalid shares or the accuser lies; no third party can decide which. The client involved in
    most accusations is excluded first: a client that cheats all neighbours, or accuses all of them, is excluded alone. Two
    clients that accuse only each other are both excluded, so each lie costs the liar its own participation.

    Args:
        accusations: by client, the neighbours whose shares it could not decrypt.

    Example:
        >>> culprits({1: [4], 2: [4], 3: [4]})
        {4: 'clients [1, 2, 3] could not decrypt its shares'}
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
            reported = f"reported invalid shares from clients {sorted(accusations.get(client, ()))}"
            out[client] = f"clients {by} could not decrypt its shares" if by else reported
        disputes = {pair for pair in disputes if not pair & out.keys()}
    return dict(sorted(out.items()))
