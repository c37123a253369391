"""The steps of one secure sum, in order: what the server requests of whom, wherever its clients run.

There are five, or the last three if keys and shares were exchanged in the round before (`preparation`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from paceline.aggregation.secure.server import SecureServer

__all__ = ["STEPS", "StepRequest", "carry_out"]

STEPS = ("advertise", "share", "masked", "consistency", "unmask")
"""The requests of the protocol, in order."""


class StepRequest(Protocol):
    """Sends one request to clients and passes each reply on."""

    def __call__(
        self,
        step: str,
        common: Any,
        clients: Sequence[int],
        take: Callable[[int, Any], Any],
        own: Mapping[int, Any] | None = None,
    ) -> None:
        """Request a step.

        Args:
            step: one of `STEPS`.
            common: the message that all clients get.
            clients: the recipients.
            take: receives each reply, with its client.
            own: a further message for each client.
        """


def carry_out(
    server: SecureServer,
    ask: StepRequest,
    message: Any = None,
    add_masked: Callable[[int, Any], Any] | None = None,
    before_opening: Callable[[list[int]], None] | None = None,
    mail: Mapping[int, Any] | None = None,
) -> list[int]:
    """Carry out the protocol up to the point at which `server.open` can be called; return the survivors, ascending.

    Args:
        server: the server's state machine.
        ask: sends requests.
        message: what the summed function gets; a simulation whose vectors are known needs none.
        add_masked: receives masked vectors in place of `SecureServer.add_masked`.
        before_opening: called with the survivors once they are signed, before any share is requested.
        mail: the sealed shares for each client, if keys and shares were exchanged in the round before.

    Raises what the server raises: `QuorumError` where too few clients are left, `MisbehaviourError` with the culprits.
    """
    if mail is None:
        ask("advertise", server.session.plain(), server.session.clients, server.add_advert)
        hashes, adverts = server.directory_for()
        ask("share", server.announced(hashes), list(adverts), server.add_shares, adverts)
        mail = server.inbox_for()
    ask("masked", message, list(mail), add_masked or server.add_masked, mail)
    alive = server.alive()
    ask("consistency", {"alive": alive}, alive, server.add_signature)
    signatures = server.signatures_for()
    if before_opening is not None:
        before_opening(alive)
    ask("unmask", None, list(signatures), server.add_unmasking, signatures)
    return alive
