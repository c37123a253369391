"""Client functions of secure aggregation: each runs one protocol step; `masked` also runs the method's own function.

Everything that determines the reply is either common to all clients and part of the session's hash, or local to the
client: the declarations of its installed method, its data, its memory. Nothing else that a server sends is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from paceline.aggregation.secure.client import SecureClient
from paceline.aggregation.secure.client_openings import Openings
from paceline.aggregation.secure.codec import Codec, Encoded
from paceline.aggregation.secure.messages import as_tensors, need, opened_record, packed_record, session_of
from paceline.aggregation.secure.task_hash import Agreement, OwnWork, Work
from paceline.core.engine import ClientFunction
from paceline.core.errors import ProtocolError
from paceline.core.generators import nested
from paceline.core.method import on_client
from paceline.core.profiling import spent
from paceline.core.protocol import ProtocolContext
from paceline.core.random import derive
from paceline.core.serialization import digest
from paceline.core.tree import Tree
from paceline.core.wire import wire_size

__all__ = ["SecAggClient"]


@dataclass
class _State:
    """One client's session.

    Args:
        machine: the protocol's state.
        work: what was masked.
        alive: the survivors that were signed.
    """

    machine: SecureClient
    work: OwnWork | None = None
    alive: tuple[int, ...] = ()


class SecAggClient:
    """The protocol's client functions. Keys and shares are held in the session's memory and never stored.

    Args:
        directory: identity keys. A simulation generates them; a real client has its own key and pins those of the others.
        agreed: the run and its method, as known to this client.
        openings: record of opened sums; None in a simulation, whose server is honest.
        run: name under which openings are counted.
    """

    def __init__(self, directory: Any, agreed: Agreement | None = None, openings: Openings | None = None, run: str = "") -> None:
        self.directory, self.agreed, self.openings, self.run = directory, agreed or Agreement(), openings, run
        self._hashed: tuple[Tree, tuple[bytes, bytes]] | None = None

    @on_client(each=True)
    def advertise(self, me: ProtocolContext, message: dict[str, Any]) -> dict[str, Any]:
        """R0: start a session and return its signed public keys.

        Raises:
            ProtocolError: the session is not newer than every earlier one, or its parameters are invalid.
        """
        client, session = me.client, session_of(message)
        if session.round != client.round:
            raise ProtocolError(f"client {client.id}: the session is for round {session.round}, the call for {client.round}")
        if [session.round, session.attempt] <= client.memory.get("_secagg", [-1, -1]):
            raise ProtocolError(f"client {client.id}: session {session.round}.{session.attempt} is a replay")
        _declared(me, session.function)
        client.memory["_secagg"] = [session.round, session.attempt]
        publics = self.directory.publics(session.clients)
        machine = SecureClient(client.id, session, self.directory.identity(client.id), publics)
        me.session.state = _State(machine)
        return machine.advertise()

    @on_client(each=True)
    def share(self, me: ProtocolContext, message: dict[str, Any]) -> dict[str, Any]:
        """R1: return sealed shares of both secrets, with this client's record for its neighbours if the function declares one."""
        common, adverts = need(message, "all", "own")
        (hashes,) = need(common, "hashes")
        machine = _state(me).machine
        peer_record = _declared(me, machine.session.function).peer_record
        if peer_record is None:
            return machine.share(hashes, adverts)
        with nested(0, me.client.device):
            record = packed_record(me.invoke(me.client, peer_record, None))
        return machine.share(hashes, adverts, record)

    @on_client(each=True)
    def masked(self, me: ProtocolContext, message: dict[str, Any]) -> dict[str, Any]:
        """R2: verify that the task matches the signed session, run the method's function and return its masked reply.

        Raises:
            ProtocolError: the task differs from the one in the session's hash, or opening the sum would reveal too much.
        """
        content, mail = need(message, "all", "own")
        client, state = me.client, _state(me)
        machine, session = state.machine, state.machine.session
        declared = _declared(me, session.function)
        work = Work(self.agreed, session.function, declared, self._digest(content))
        if work.task(session.round, session.trial, session.call) != session.task:
            raise ProtocolError(
                f"client {client.id}: the task does not match the session's hash; the server sent clients "
                "different tasks, or this client runs another version of paceline or of the method"
            )
        machine.receive(*need(mail, "sealed", "told"))
        if machine.accused:
            return machine.accuse()
        if self.openings is not None:
            # checked before masking: once a vector is sent, the other clients can open it. The key uses the memory as of the
            # last round, because entries written while a function runs do not make it different work
            memory = client.memory if declared.collects else client.memory.stored
            own = state.work = work.own(memory)
            self.openings.check(own, self.run, client.round, session.clients, session.least_half)
        peers = {v: record for v, data in machine.peers.items() if (record := opened_record(data)) is not None}
        inner = me.inner(session.stream, peers)
        inner.nameless = not me.names_clients
        codec, noted = Codec(session.config, len(session.clients), declared.limits), client.memory.mark()
        try:
            with nested(0, client.device):
                reply = me.invoke(inner, session.function, content)
            with spent.on("encoding"):
                encoded = codec.encode(reply, derive(inner.seed, "encode"))
        except Exception as error:
            client.memory.reset(noted)  # the changes belong to a reply that no sum contains,
            client.memory.begin(client.operation)  # and so do those of an earlier try
            encoded = self._nothing(codec, me, session.function, content, error)
        inner.nameless = False
        if inner.flops:
            me.note_times(inner, wire_size(content), encoded.size)
        client.flops += inner.flops
        answer = machine.masked(encoded.segments)
        return {**answer, "segments": as_tensors(answer["segments"]), "shape": encoded.shape}

    @on_client(each=True)
    def consistency(self, me: ProtocolContext, message: dict[str, Any]) -> dict[str, Any]:
        """R2.5: sign the list of survivors, unless the same work was opened for a different list."""
        (alive,) = need(message, "alive")
        state = _state(me)
        answer = state.machine.consistency(alive)
        if self.openings is not None:
            self.openings.check(_work(me), self.run, me.client.round, alive, state.machine.session.least_half)
        state.alive = tuple(alive)
        return answer

    @on_client(each=True)
    def unmask(self, me: ProtocolContext, message: dict[str, Any]) -> dict[str, Any]:
        """R3: return the shares that open the sum over the survivors, once. The opening is recorded first."""
        state, round = _state(me), me.client.round
        answer = state.machine.unmask(*need(message, "own"))
        if self.openings is not None:  # includes openings by another process of this client since the signature
            self.openings.check(_work(me), self.run, round, state.alive, state.machine.session.least_half)
            self.openings.record(_work(me), self.run, round, state.alive)
        me.session.state = None
        return answer

    def _nothing(self, codec: Codec, me: ProtocolContext, function: str, content: Tree, error: Exception) -> Encoded:
        """Return zeros with no weight for a function that failed or whose reply cannot be encoded.

        A refusal would reveal to the server that this client's data make the function fail, and a model can be crafted for
        that. If not even the shape of a reply is known, and in a simulation, the error is raised.
        """
        reply = None if self.openings is None else me.preview(function, content)
        if reply is None:
            raise error
        me.session.failed = f"{type(error).__name__}: {error}"
        return codec.nothing(reply)

    def _digest(self, content: Tree) -> tuple[bytes, bytes]:
        """Return a message's digest. Clients in one process receive the same object, which is hashed once."""
        if self._hashed is None or self._hashed[0] is not content:
            self._hashed = (content, digest(content))
        return self._hashed[1]


def _declared(me: ProtocolContext, function: str) -> ClientFunction:
    """Return the declaration of a function that is to be summed, from this client's own method and its own model."""
    if function not in me.functions:
        raise ProtocolError(f"method.{function} is not a client function of this client's method")
    if me.functions[function].each:
        raise ProtocolError(f"{function!r} is declared with each=True, so its replies cannot be summed")
    return me.functions[function].fitted(lambda: me.client.model.layout)


def _state(me: ProtocolContext) -> _State:
    if not isinstance(me.session.state, _State):
        raise ProtocolError(f"client {me.client.id} has no open session; it has ended or was never started")
    return me.session.state


def _work(me: ProtocolContext) -> OwnWork:
    work = _state(me).work
    if work is None:
        raise ProtocolError(f"client {me.client.id} has not sent a masked vector in this session")
    return work
