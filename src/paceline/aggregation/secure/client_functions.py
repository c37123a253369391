"""Client functions of secure aggregation: each runs one protocol step; `masked` also runs the method's own function.

Everything that determines the reply is either common to all clients and part of the session's hash, or local to the
client: the declarations of its installed method, its data, its memory. Nothing else that a server sends is used.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from paceline.aggregation.nested import assigned, declared_tier, message_of
from paceline.aggregation.secure.client import SecureClient
from paceline.aggregation.secure.client_openings import Openings
from paceline.aggregation.secure.client_records import own_record
from paceline.aggregation.secure.codec import Codec
from paceline.aggregation.secure.covers import Cover
from paceline.aggregation.secure.messages import (
    MALFORMED,
    as_tensors,
    common_and_own,
    need,
    opened_record,
    session_of,
    survivors_of,
)
from paceline.aggregation.secure.session import Session
from paceline.aggregation.secure.task_hash import Agreement, OwnWork, Work, message_digest
from paceline.core.declarations import helpers
from paceline.core.engine import ClientFunction
from paceline.core.errors import ProtocolError
from paceline.core.generators import nested
from paceline.core.method import on_client
from paceline.core.nested import PartialModel, Segmenter, same_order, split_reply
from paceline.core.profiling import spent
from paceline.core.protocol import ProtocolContext
from paceline.core.random import derive
from paceline.core.serialization import digest
from paceline.core.tree import Tree
from paceline.core.wire import wire_size

__all__ = ["SecAggClient"]

STEADY = 5
"""Rounds in which a client declares the same tier before it prepares sums over parts of a model. Keys for another tier than it has then
cost all clients a second training and upload, as much as they save in some 35 rounds of the demo."""

_Reply = tuple[dict[str, Any] | None, Tree]
"""Result of `_split`."""


@dataclass
class _State:
    """One client's session.

    Args:
        machine: the protocol's state.
        work: what was masked.
        alive: the survivors that were signed.
        partition: key of the segments of the model, in a sum over parts of it.
        model: the whole model, if this client received it in such a sum.
    """

    machine: SecureClient
    work: OwnWork | None = None
    alive: tuple[int, ...] = ()
    partition: str = ""
    model: PartialModel | None = None

    def cover(self, clients: Sequence[int]) -> Cover:
        """Return the clients of a sum, segment by segment."""
        return Cover.of(clients, self.machine.tiers, self.partition)


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
        self._tried: dict[str, int] = {}
        """Last round in which a real client began a sum over parts of a model, by function."""

    @on_client(each=True)
    def advertise(self, me: ProtocolContext, message: dict[str, Any]) -> dict[str, Any]:
        """R0: start a session and return its signed public keys.

        Raises:
            ProtocolError: the session is not newer than every earlier one, or its parameters are invalid.
        """
        client, session = me.client, session_of(message)
        if session.prepared:
            raise ProtocolError(f"client {client.id}: the server cannot choose the task of a session after its keys")
        me.session.forget(session.function)
        if session.call == 1:
            me.session.ready.pop(session.function, None)
        if session.round != client.round:
            raise ProtocolError(f"client {client.id}: the session is for round {session.round}, the call for {client.round}")
        if [session.round, session.attempt] <= client.memory.get("_secagg", [-1, -1]):
            raise ProtocolError(f"client {client.id}: session {session.round}.{session.attempt} is a replay")
        declared = _declared(me, session.function)
        if session.parts != (0 if declared.nested is None else len(declared.nested.fractions)):
            raise ProtocolError(f"{session.function!r} does not have {session.parts} tiers in this client's method")
        self._may_leave_out(session)
        me.session.begin(client.operation, client.memory)
        client.memory["_secagg"] = [session.round, session.attempt]
        publics = self.directory.publics(session.clients)
        tier = declared_tier(me, declared) if session.parts else 0
        machine = SecureClient(client.id, session, self.directory.identity(client.id), publics, tier=tier)
        me.session.state = _State(machine)
        return machine.advertise()

    @on_client(each=True)
    def share(self, me: ProtocolContext, message: dict[str, Any]) -> dict[str, Any]:
        """R1: return sealed shares of both secrets, with this client's record for its neighbours if the function declares one."""
        common, adverts = common_and_own(message)
        (hashes,) = need(common, "hashes")
        machine = _state(me).machine
        declared = _declared(me, machine.session.function)
        record = own_record(me, declared, machine.session, self.openings is None)
        if declared.nested is not None:
            me.session.note(machine.session.function, machine.tier)
        return machine.share(hashes, adverts, record, common.get("tiers"))

    @on_client(each=True)
    def masked(self, me: ProtocolContext, message: dict[str, Any]) -> dict[str, Any]:
        """R2: verify that the task matches the signed session, run the method's function and return its masked reply.

        Raises:
            ProtocolError: the task differs from the one in the session's hash, or opening the sum would reveal too much.
        """
        content, mail = common_and_own(message)
        if isinstance(mail, dict) and "prepared" in mail and not self._ready(me, mail["prepared"]):
            return {"unprepared": 1}
        client, state = me.client, _state(me)
        machine, session = state.machine, state.machine.session
        declared = _declared(me, session.function)
        work = Work(self.agreed, session.function, declared, self._digest(content, declared))
        if work.task(session.round, session.trial, session.call) != session.task:
            raise ProtocolError(
                f"client {client.id}: the task does not match the session's hash; the server sent clients "
                "different tasks, or this client runs another version of paceline or of the method"
            )
        machine.receive(*need(mail, "sealed", "told"))
        if machine.accused:
            return machine.accuse()
        model = self._received(me, state, declared, content, mail)
        if self.openings is not None:
            # checked before masking: once a vector is sent, the other clients can open it. The key uses the memory as of the
            # last round, because entries written while a function runs do not make it different work
            memory = client.memory if declared.collects else client.memory.stored
            own = state.work = work.own(memory)
            self.openings.check(own, self.run, client.round, state.cover(session.clients), session.least_half)
        peers = {v: record for v, data in machine.peers.items() if (record := opened_record(data)) is not None}
        inner = me.inner(session.stream, peers)
        inner.nameless = not me.names_clients
        codec = Codec(session.config, len(session.clients), declared.limits, session.round)
        split = partial(_split, me, machine, declared, model, codec)
        fixed = None if self.openings is None else self._fixed(me, session.function, model, split)
        noted, everything, began = client.memory.mark(), None, time.perf_counter()
        try:
            with nested(0, client.device):
                reply = me.invoke(inner, session.function, model)
            with spent.on("encoding"):
                everything, own_reply = split(reply)
                encoded = codec.encode(own_reply, derive(inner.seed, "encode"))
                if fixed is not None and (everything, encoded.shape) != (fixed[0], codec.shape(fixed[1])):
                    raise ProtocolError(f"the reply of {session.function!r} has another shape than on samples drawn at random")
        except Exception as error:
            client.memory.reset(noted)  # the changes belong to a reply that no sum contains,
            client.memory.begin(client.operation)  # and so do those of an earlier try
            if fixed is None:
                raise
            # a refusal would reveal that this client's data make the function fail, and a model can be crafted for that
            me.session.failed, me.session.wasted = f"{type(error).__name__}: {error}", time.perf_counter() - began
            everything, encoded = fixed[0], codec.nothing(fixed[1])
            inner = me.cover(session.stream, peers, session.function, model) or inner
        inner.nameless = False
        if inner.flops:
            down = wire_size(content) if declared.nested is None else _down(session.function, content, mail["parts"])
            me.note_times(inner, down, encoded.size)
        client.flops += inner.flops
        shape = encoded.shape if everything is None else everything
        answer = machine.masked(encoded.segments, None if everything is None else codec.segments(everything))
        answer = {**answer, "segments": as_tensors(answer["segments"]), "shape": shape}
        return _with_next(answer, lambda: self._advertised(me, session, mail["next"]) if "next" in mail else None)

    def _may_leave_out(self, session: Session) -> None:
        """Refuse a session without some tiers, unless it repeats one of this round in which this client took part."""
        if self.openings is None:
            return
        if len(session.tiers) < session.parts and self._tried.get(session.function) != session.round:
            raise ProtocolError(f"the server leaves out tiers of {session.function!r}, which only a repeated round may do")
        self._tried[session.function] = session.round

    def _ready(self, me: ProtocolContext, named: Any) -> bool:
        """Begin the session that was prepared for this sum; return False if there is none, as after a restart.

        It is forgotten at the first request, whatever becomes of it: keys serve one session.
        """
        function, task = need(named, "function", "task")
        client, machine = me.client, me.session.ready.pop(function, None)
        me.session.state = None
        me.session.forget(function)
        if machine is None or machine.session.round != client.round:
            return False
        session, mark = machine.session, [machine.session.round, machine.session.attempt]
        identity, keys = self.directory.identity(client.id), self.directory.publics(session.clients)
        if keys != machine.directory or identity.public != machine.identity.public:
            return False
        mark = max(mark, client.memory.get("_secagg", mark))
        me.session.begin(client.operation, client.memory)
        client.memory["_secagg"] = mark
        if not self._as_sent(me, machine):
            return False
        self._may_leave_out(session)
        own_record(me, _declared(me, function), session, self.openings is None)  # the others have it: what it stores is wanted
        machine.bind(task)
        me.session.state = _State(machine)
        return True

    @staticmethod
    def _as_sent(me: ProtocolContext, machine: SecureClient) -> bool:
        """Return whether this client would declare the same tier as when the session was prepared; tiers are public."""
        declared, memory = _declared(me, machine.session.function), me.client.memory
        if declared.nested is None:
            return True
        noted = memory.mark()
        try:
            now = declared_tier(me, declared)
        except Exception:  # raised again where the session is begun anew
            now = None
        if now != machine.tier:
            memory.reset(noted)
            return False
        me.session.note(machine.session.function, now)
        return True

    def _advertised(self, me: ProtocolContext, session: Session, id: Any) -> dict[str, Any]:
        """Return the advertised keys of the next session, which this client derives from the current one."""
        me.session.coming.pop(session.function, None)
        declared, me_id = _declared(me, session.function), me.client.id
        if declared.nested is not None and me.session.sent.get(session.function, (None, 0))[1] < STEADY:
            raise ProtocolError(f"{session.function!r}: this client has not declared the same tier in {STEADY} rounds in a row")
        after, tier = session.following(id), _state(me).machine.tier if session.parts else 0
        machine = SecureClient(me_id, after, self.directory.identity(me_id), self.directory.publics(after.clients), tier=tier)
        me.session.coming[session.function] = machine
        return machine.advertise()

    def _shared(self, me: ProtocolContext, function: str, directory: Any) -> dict[str, Any]:
        """Return sealed shares of the next session, with this client's record, which is final once its vector is sent."""
        machine = me.session.coming.pop(function, None)
        if machine is None:
            raise ProtocolError(f"no session of {function!r} is being prepared")
        try:
            record = own_record(me, _declared(me, function), machine.session, self.openings is None, ahead=True)
        except Exception as error:  # raised again where the session is begun anew
            raise ProtocolError(f"{function!r}: this client has no record for the next round: {type(error).__name__}") from error
        shares: dict[str, Any] = machine.share(*need(directory, "hashes", "adverts"), record, directory.get("tiers"))
        me.session.coming[function] = machine
        return shares

    @on_client(each=True)
    def consistency(self, me: ProtocolContext, message: dict[str, Any]) -> dict[str, Any]:
        """R2.5: sign the list of survivors, unless the same work was opened for a different list."""
        alive, own = survivors_of(message)
        state = _state(me)
        answer = state.machine.consistency(alive)
        if self.openings is not None:
            self.openings.check(_work(me), self.run, me.client.round, state.cover(alive), state.machine.session.least_half)
        state.alive = tuple(alive)
        if isinstance(own, dict) and "next" in own:  # the shares are sent with the next reply
            me.session.later = partial(self._shared, me, state.machine.session.function, own["next"])
        return answer

    @on_client(each=True)
    def unmask(self, me: ProtocolContext, message: dict[str, Any]) -> dict[str, Any]:
        """R3: return the shares that open the sum over the survivors, once. The opening is recorded first."""
        state, round = _state(me), me.client.round
        _, signatures = common_and_own(message)
        answer = state.machine.unmask(signatures)
        if self.openings is not None:  # checked once more: another process of this client can have opened a sum since the signature
            self.openings.open_sum(_work(me), self.run, round, state.cover(state.alive), state.machine.session.least_half)
            if state.model is not None:
                me.client.memory["_before"] = {"round": round, "model": state.model}
        me.session.state = None
        return _with_next(answer, me.session.result)

    def _received(self, me: ProtocolContext, state: _State, declared: ClientFunction, content: Any, mail: Any) -> Tree:
        """Return the message of the method's function: `content`, or the part of the model that this client received.

        Raises:
            ProtocolError: the part does not match the hashes that all clients received, or the order of the units is not the
                one that this client computes.
        """
        nesting, machine, client = declared.nested, state.machine, me.client
        if nesting is None or machine.tiers is None:
            return content
        tiers, (parts,) = machine.tiers, need(mail, "parts")
        model = assigned(client, declared, content, parts, tiers.owned[client.id], tiers.wanted[client.id])
        state.partition = digest(model.order)[0].hex()
        if self.openings is None:
            return model
        before = client.memory.get("_before")
        last = before["model"] if before is not None and before["round"] == client.round - 1 else None
        whole = tiers.owned[client.id] == 0
        with nested(0, client.device):
            expected = me.invoke(client, nesting.order, {"now": model, "before": last if whole else None})
        if expected is not None and not same_order(model.order, expected):
            raise ProtocolError(f"client {client.id}: the public order of the units is not the one that this client computes")
        state.model = model if whole else None
        return model

    @staticmethod
    def _fixed(me: ProtocolContext, function: str, content: Tree, split: Callable[[Tree], _Reply]) -> _Reply:
        """Return a reply whose shape this client's reply must have: zeros are sent in it if the function fails.

        The shape is sent in plain text, so it must not depend on this client's data. Nor may a refusal, so it is determined before
        the function runs.

        Raises:
            ProtocolError: the function has no preview, for the same reason on all clients.
        """
        reply = me.preview(function, content)
        if reply is None:
            raise ProtocolError(f"the shape of the replies of {function!r} is unknown: it fails on samples drawn at random")
        return split(reply)

    def _digest(self, content: Tree, declared: ClientFunction) -> tuple[bytes, bytes]:
        """Return a message's digest. Clients in one process receive the same object, which is hashed once."""
        if self._hashed is None or self._hashed[0] is not content:
            self._hashed = (content, message_digest(content, declared))
        return self._hashed[1]


def _with_next(answer: dict[str, Any], prepare: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
    """Return an answer with what prepares the next session, if it was requested; a violation ends the preparation only."""
    try:
        coming = prepare()
    except (ProtocolError, *MALFORMED):
        return answer
    return answer if coming is None else {**answer, "next": coming}


def _declared(me: ProtocolContext, function: str) -> ClientFunction:
    """Return the declaration of a function that is to be summed, from this client's own method and its own model."""
    if function not in me.functions:
        raise ProtocolError(f"method.{function} is not a client function of this client's method")
    if me.functions[function].each:
        raise ProtocolError(f"{function!r} is declared with each=True, so its replies cannot be summed")
    if function in helpers(me.functions):
        raise ProtocolError(
            f"{function!r} returns what another client function declares of a client, so its replies cannot be summed"
        )
    return me.functions[function].fitted(lambda: me.client.model.layout)


def _split(me: ProtocolContext, machine: SecureClient, declared: ClientFunction, model: Tree, codec: Codec, reply: Tree) -> _Reply:
    """Return the shape of the replies of all tiers, and this client's reply with the segments that it sends.

    The shape is None, and the reply is unchanged, unless the sum is over parts of a model.
    """
    if declared.nested is None or machine.tiers is None:
        return None, reply
    places = me.client.services[Segmenter].places(model.order, declared.nested)
    return codec.shape(split_reply(reply, places, 0)), split_reply(reply, places, machine.tiers.owned[machine.me])


def _down(function: str, head: Tree, parts: Tree) -> int:
    """Return the size of what a client receives in a sum over parts of a model, as in one without masks."""
    return wire_size(message_of(function, head)) + wire_size({"owned": 0, "wanted": 0, "parts": parts})


def _state(me: ProtocolContext) -> _State:
    if not isinstance(me.session.state, _State):
        raise ProtocolError(f"client {me.client.id} has no open session; it has ended or was never started")
    return me.session.state


def _work(me: ProtocolContext) -> OwnWork:
    work = _state(me).work
    if work is None:
        raise ProtocolError(f"client {me.client.id} has not sent a masked vector in this session")
    return work
