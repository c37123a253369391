"""Secure aggregation as a server program over an engine's calls, so it works on every engine.

The server asks five questions (advertise, share, masked input, consistency, unmask); the third one runs
the method's own function on the client and masks what it returns. It learns the sum over the survivors.
``secure-arithmetic`` does the same encoding and modular sums without keys and masks: same bits out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from paceline.aggregation.codec import Codec
from paceline.aggregation.plain import tell
from paceline.aggregation.secure.client import SecureClient
from paceline.aggregation.secure.config import SecureConfig, Segment
from paceline.aggregation.secure.encoding import Words
from paceline.aggregation.secure.identity import SimulatedDirectory
from paceline.aggregation.secure.server import SecureServer
from paceline.aggregation.secure.simulate import new_session
from paceline.aggregation.wires import (
    MALFORMED,
    as_bytes,
    as_tensors,
    fits,
    need,
    opened_record,
    packed_record,
    session_of,
)
from paceline.call import Each, Receipt, Sink, wire_size
from paceline.client import Client
from paceline.errors import AggregationError, ConfigError, ProtocolError, QuorumError, UnknownNameError
from paceline.federation import Federation, Request, Summed
from paceline.method import on_client
from paceline.params import Params
from paceline.rng import derive
from paceline.spent import spent
from paceline.tree import Tree
from paceline.update import Update

__all__ = ["SecureAggregation", "SecureArithmetic", "secure_config"]


def secure_config(options: Mapping[str, Any]) -> SecureConfig:
    """Return the options of secure aggregation; raises `UnknownNameError` and `ConfigError`."""
    from pydantic import TypeAdapter, ValidationError

    known = {f.name for f in dataclasses.fields(SecureConfig)}
    for name in options:
        if name not in known:
            raise UnknownNameError("option of secure aggregation:", name, known)
    try:
        return TypeAdapter(SecureConfig).validate_python(dict(options))
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigError(f"secure aggregation: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None


@dataclass(frozen=True)
class SecureAggregation:
    """Sums that the server can open only for the whole cohort of survivors.

    Args:
        config: see `SecureConfig`.
        directory: who has which identity key; a simulation makes keys of its own.
    """

    config: SecureConfig = field(default_factory=SecureConfig)
    directory: Any = field(default_factory=SimulatedDirectory, repr=False)
    name: str = "secure"
    sees_each: bool = False

    @cached_property
    def programs(self) -> dict[str, Any]:
        """The protocol's client functions."""
        return {"secagg": SecAggClient(self.directory)}

    def sum(self, fed: Federation, request: Request) -> Summed:
        """Run the protocol once; a client that vanishes at any step drops out of the sum."""
        keys = self.programs["secagg"].directory.listed(request.cohort)
        request = dataclasses.replace(request, cohort=tuple(keys))  # who was revoked a moment ago is not asked
        _enough(fed, request)
        session = new_session(request.cohort, self.config, fed.round, fed.serial)
        server = SecureServer(session, keys, fed.quorum)
        shapes: dict[int, Any] = {}

        def ask(step: str, message: Tree, clients: Any, take: Any, **options: Any) -> None:
            def sink(receipt: Receipt) -> None:
                if receipt.dropped is None:
                    take(receipt.client, receipt.value)

            fed.call(step, message, clients, Each(), program="secagg", sink=sink, **options)

        ask("advertise", session.plain(), request.cohort, server.add_advert)
        hashes, adverts = server.directory_for()
        declared = request.declared
        ask("share", {"hashes": hashes, "tells": declared.tells}, list(adverts), server.add_shares, each_message=adverts)
        mail = server.mail_for()
        codec = Codec(self.config, len(request.cohort), declared.bounds)

        def add_masked(client: int, message: Any) -> None:
            shape = message.pop("shape", None) if isinstance(message, dict) else None
            if isinstance(message, dict):
                if not fits(codec, shape, message.get("table")):
                    message = None
                else:
                    message["segments"] = as_bytes(message.get("segments"))
            if server.add_masked(client, message, repr(shape)):
                shapes[client] = shape

        task = {
            "function": request.function,
            "message": request.message,
            "stream": fed.stream(f"method.{request.function}"),
            "bounds": dict(declared.bounds),
        }
        ask("masked", task, list(mail), add_masked, each_message=mail, deadline=request.deadline)
        alive = server.alive()
        ask("consistency", {"alive": alive}, alive, server.add_signature)
        signatures = server.signatures_for()
        ask("unmask", None, list(signatures), server.add_unmasking, each_message=signatures)
        opened = server.open()
        try:
            summed = codec.decode(shapes[alive[0]], opened, alive)
        except MALFORMED as error:
            raise ProtocolError(f"round {fed.round}: most clients told a shape of their replies that cannot be: {error}") from None
        return dataclasses.replace(summed, notes={**summed.notes, "refused": float(len(server.refused))})

    def reply_size(self, model: Params, cohort: int) -> int:
        """Return the bytes of a masked reply that holds as many values as the model."""
        return Codec(self.config, cohort).size(Update(delta=model, weight=1))

    def check(self, fed: Federation) -> list[str]:
        """Return why a cohort of this size cannot be summed securely."""
        return _check(self.config, fed)


class SecAggClient:
    """The protocol's client functions. Keys and shares live in the session's memory and are never stored.

    Args:
        directory: identity keys; a simulation makes them, a real client has its own and pins the others'.
    """

    def __init__(self, directory: SimulatedDirectory) -> None:
        self.directory = directory

    @on_client(each=True)
    def advertise(self, client: Client, message: dict[str, Any]) -> dict[str, Any]:
        """R0: start a session that is newer than any before, and advertise its keys."""
        session = session_of(message)
        if [session.round, session.attempt] <= client.memory.get("_secagg", [-1, -1]):
            raise ProtocolError(f"client {client.id} refuses: session {session.round}.{session.attempt} is a replay")
        client.memory["_secagg"] = [session.round, session.attempt]
        publics = self.directory.publics(session.clients)
        machine = SecureClient(client.id, session, self.directory.identity(client.id), publics)
        client.services["session"]["secagg"] = machine
        return machine.advertise()

    @on_client(each=True)
    def share(self, client: Client, message: dict[str, Any]) -> dict[str, Any]:
        """R1: share secrets, and tell the neighbours this client's record."""
        common, adverts = need(message, "all", "own")
        hashes, tells = need(common, "hashes", "tells")
        record = b"" if tells is None else packed_record(client.services["worker"].invoke(client, "method", tells, None))
        return _machine(client).share(hashes, adverts, record)

    @on_client(each=True)
    def masked(self, client: Client, message: dict[str, Any]) -> dict[str, Any]:
        """R2: run the method's function and mask its reply."""
        task, mail = need(message, "all", "own")
        function, content, stream, bounds = need(task, "function", "message", "stream", "bounds")
        machine, worker = _machine(client), client.services["worker"]
        machine.receive(*need(mail, "sealed", "told"))
        peers = {v: record for v, data in machine.peers.items() if (record := opened_record(data)) is not None}
        inner = worker.client(client.services["call"], client.id, stream, peers)
        reply = worker.invoke(inner, "method", function, content)
        codec = Codec(machine.session.config, len(machine.session.clients), bounds)
        with spent.on("encoding"):
            encoded = codec.encode(reply, derive(inner.seed, "encode"))
        if inner.flops:
            worker.note_times(inner, wire_size(content), encoded.size)
        client.flops += inner.flops
        answer = machine.masked(encoded.segments)
        return {**answer, "segments": as_tensors(answer["segments"]), "shape": encoded.shape}

    @on_client(each=True)
    def consistency(self, client: Client, message: dict[str, Any]) -> dict[str, Any]:
        """R2.5: sign the list of survivors."""
        return _machine(client).consistency(*need(message, "alive"))

    @on_client(each=True)
    def unmask(self, client: Client, message: dict[str, Any]) -> dict[str, Any]:
        """R3: give the shares that open the sum over the survivors, once."""
        answer = _machine(client).unmask(*need(message, "own"))
        client.services["session"].clear()
        return answer


@dataclass(frozen=True)
class SecureArithmetic:
    """The encoding and modular sums of secure aggregation, without its keys and masks: no protection.

    Args:
        config: see `SecureConfig`.
    """

    config: SecureConfig = field(default_factory=SecureConfig)
    name: str = "secure-arithmetic"
    sees_each: bool = False

    def sum(self, fed: Federation, request: Request) -> Summed:
        """Ask the cohort and add encoded replies modulo 2^b."""
        _enough(fed, request)
        peers = tell(fed, request)
        codec = Codec(self.config, len(request.cohort), request.declared.bounds)
        _, partials = fed.call(
            request.function, request.message, request.cohort, _Modular(codec), deadline=request.deadline, peers=peers
        )
        total = partials[0]
        for other in partials[1:]:
            total.merge(other)
        least = max(self.config.least(len(request.cohort)), fed.quorum)
        if len(total.clients) < least:
            raise QuorumError(f"round {fed.round}: {len(total.clients)} of {len(request.cohort)} clients replied; {least} are needed")
        return codec.decode(total.shape, total.sums, sorted(total.clients))

    def check(self, fed: Federation) -> list[str]:
        """Return why a cohort of this size cannot be summed securely."""
        return _check(self.config, fed)


@dataclass(frozen=True)
class _Modular:
    codec: Codec

    def open(self) -> _ModularSum:
        return _ModularSum(self.codec)


class _ModularSum(Sink):
    """A sum of encoded replies at one worker."""

    def __init__(self, codec: Codec) -> None:
        self.codec, self.clients = codec, list[int]()
        self.shape: dict[str, Any] = {}
        self.sums: list[tuple[Segment, Words]] = []

    def size(self, reply: Tree) -> int:
        return self.codec.size(reply)

    def add(self, client: int, reply: Tree, seed: Callable[[], int]) -> None:
        with spent.on("encoding"):
            encoded = self.codec.encode(reply, seed())
        if not self.sums:
            self.shape, self.sums = encoded.shape, encoded.segments
        else:
            self._same(encoded.shape)
            for (_, total), (_, words) in zip(self.sums, encoded.segments, strict=True):
                np.add(total, words, out=total)
        self.clients.append(client)

    def merge(self, other: _ModularSum) -> None:
        if not self.sums:
            self.__dict__.update(other.__dict__)
        elif other.sums:
            self._same(other.shape)
            for (_, total), (_, words) in zip(self.sums, other.sums, strict=True):
                np.add(total, words, out=total)
            self.clients += other.clients

    def _same(self, shape: dict[str, Any]) -> None:
        if shape != self.shape:
            raise AggregationError("clients returned replies of different shapes")

    def partial(self) -> _ModularSum:
        return self


def _machine(client: Client) -> SecureClient:
    machine = client.services["session"].get("secagg")
    if machine is None:
        raise ProtocolError(f"client {client.id} has no session; it ended, or was never begun")
    assert isinstance(machine, SecureClient)
    return machine


def _enough(fed: Federation, request: Request) -> None:
    """Refuse a cohort that has become too small to hide its members: fewer may be there than are wanted."""
    there = len(request.cohort)
    if there < 3:
        raise QuorumError(f"round {fed.round}: {there} clients are there; a secure sum needs 3, as one of 2 shows each to the other")


def _check(config: SecureConfig, fed: Federation) -> list[str]:
    if fed.cohort_size < 3:
        return [f"secure aggregation needs a cohort of at least 3 clients, not {fed.cohort_size}; a sum of 2 shows each to the other"]
    try:
        new_session(range(fed.cohort_size), config)
    except (ConfigError, QuorumError) as error:
        return [str(error)]
    return []
