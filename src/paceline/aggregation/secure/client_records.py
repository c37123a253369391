"""A client's record for its neighbours, formed in a round or, for a session that is prepared, at the end of the round before."""

from __future__ import annotations

from paceline.aggregation.secure.messages import ABSENT, packed_record
from paceline.aggregation.secure.session import Session
from paceline.core.engine import ClientFunction
from paceline.core.errors import ProtocolError
from paceline.core.failures import Declined
from paceline.core.generators import nested
from paceline.core.protocol import ProtocolContext

__all__ = ["own_record"]


def own_record(me: ProtocolContext, declared: ClientFunction, session: Session, strict: bool, ahead: bool = False) -> bytes:
    """Return this client's record, encoded; empty if the function declares none.

    If a real client cannot form it, or it exceeds the padded size, which the server chooses, it is `ABSENT`: a refusal would reveal
    which clients have a record. So it is ahead of the round for a client that will sit it out, which leaves once the round has
    begun: until the round before is over, nothing may tell.

    Args:
        me: the client.
        declared: the declaration of the summed function.
        session: in which the record is sent.
        strict: raise errors, in a simulation.
        ahead: form it for the next round; what the function stores is lost then.

    Raises:
        Declined: the client sits out; what its function has stored is reset.
    """
    if declared.peer_record is None:
        return b""
    stream = f"{session.trial}/method.{declared.peer_record}/{session.call}"
    client = me.ahead(stream) if ahead else me.inner(stream, {})
    noted = client.memory.mark()
    try:
        with nested(0, client.device):
            record = packed_record(me.invoke(client, declared.peer_record, None))
        if len(record) > max(session.tell_bytes - 2, 0):
            raise ProtocolError(f"the peer record has {len(record)} bytes; the maximum is {max(session.tell_bytes - 2, 0)}")
    except Exception as error:
        client.memory.reset(noted)
        declined = isinstance(error, Declined)
        if (declined and not ahead) or (strict and not declined):
            raise
        return ABSENT if session.tell_bytes > 2 else b""
    me.client.flops += client.flops
    return record
