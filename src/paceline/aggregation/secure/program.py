"""Secure aggregation as a server program over an engine's calls; it runs on every engine.

The server issues five calls (advertise, share, masked input, consistency, unmask), or the last three if the first two were
part of the round before (`preparation`). The third one runs the method's own function on the client and masks its reply.
The server learns only the sum over the survivors. A single answer can do no more harm than to be left out: malformed messages
are dropped, and a client proven to have spoilt a sum is excluded for a while.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from paceline.aggregation.nested import segmented, together
from paceline.aggregation.secure.arithmetic import SecureArithmetic, enough, misfits
from paceline.aggregation.secure.client_functions import SecAggClient
from paceline.aggregation.secure.codec import Codec
from paceline.aggregation.secure.config import SecureConfig
from paceline.aggregation.secure.messages import MALFORMED, as_bytes, fits
from paceline.aggregation.secure.preparation import Preparation, Preparations, UnpreparedError
from paceline.aggregation.secure.server import SecureServer
from paceline.aggregation.secure.server_openings import OpenedSums
from paceline.aggregation.secure.session import least_half, new_session
from paceline.aggregation.secure.simulated_directory import SimulatedDirectory
from paceline.aggregation.secure.steps import carry_out
from paceline.aggregation.secure.task_hash import Agreement, Work
from paceline.aggregation.tiers import TierError
from paceline.core.engine import Aggregation, Each, Receipt, Summed, SumRequest
from paceline.core.errors import (
    AggregationError,
    MisbehaviourError,
    PacelineError,
    QuorumError,
    SumOverflowError,
)
from paceline.core.federation import Federation
from paceline.core.nested import SegmentedModel, joined, split_reply
from paceline.core.params import Params
from paceline.core.parsing import fitted
from paceline.core.tree import Tree
from paceline.core.update import Update

__all__ = ["SecureAggregation", "SecureArithmetic", "secure_config"]


def secure_config(options: Mapping[str, Any]) -> SecureConfig:
    """Return validated options of secure aggregation.

    Raises:
        UnknownNameError: unknown option.
        ConfigError: invalid value.

    Example:
        >>> secure_config({"clip": 0.5}).clip
        0.5
    """
    known = [f.name for f in dataclasses.fields(SecureConfig)]
    return SecureConfig(**fitted(SecureConfig, options, "secure aggregation", known))


@dataclass(frozen=True)
class SecureAggregation(Aggregation):
    """Sums that the server can open only for the complete set of survivors.

    Args:
        config: see `SecureConfig`.
        directory: identity keys by client; a simulation generates its own.
        agreed: the run and its method, to which all sessions are bound.
        opened: sums opened in the current round.
        prepared: sessions whose keys and shares were exchanged in the round before.
    """

    config: SecureConfig = field(default_factory=SecureConfig)
    directory: Any = field(default_factory=SimulatedDirectory, repr=False)
    agreed: Agreement = field(default_factory=Agreement, repr=False)
    opened: OpenedSums = field(default_factory=OpenedSums, repr=False, compare=False)
    prepared: Preparations = field(default_factory=Preparations, repr=False, compare=False)
    name: str = "secure"
    sees_each: bool = False

    @cached_property
    def programs(self) -> dict[str, Any]:
        """Client functions of the protocol."""
        return {"secagg": SecAggClient(self.directory, self.agreed)}

    def sum(self, fed: Federation, request: SumRequest) -> Summed:
        """Run the protocol; a client that disappears at any step drops out of the sum.

        Work that was opened before in this round is requested only from the same clients, or from halves of them; the sum is
        then formed in parts.

        Raises:
            QuorumError: too few clients are left.
            MisbehaviourError: the sum was spoilt.
        """
        listed = self.directory.listed(request.cohort)  # omits clients revoked in the meantime
        cohort = [c for c in listed if not fed.excluded.sits_out(c, fed.round)]
        enough(fed, dataclasses.replace(request, cohort=tuple(cohort)))
        model = None if request.declared.nested is None else segmented(fed, request)
        message = request.message if model is None else model.head
        work = Work.of(self.agreed, request.function, request.declared, message)
        place = fed.place(f"method.{request.function}")
        self.opened.begin(fed.round)
        self.prepared.begin(fed.round, fed.attempt)
        fed.opened |= self.opened.clients()
        parts, last = [], None
        # a sum over parts of a model is never repeated in halves, see `client_openings`
        least = partial(least_half, config=self.config) if model is None else lambda clients: clients
        groups = self.opened.groups(work.common, cohort, least)
        ready = self._prepared(request, groups, {c: listed[c] for c in cohort}, place, fed.works)
        for clients, whole in groups:
            keys = {c: listed[c] for c in clients}
            one = _Sum(self, fed, request, work, place, keys, whole, model, ready)
            try:
                try:
                    parts.append(one.form())
                except UnpreparedError as error:  # nothing of this session was opened, so the same work can be summed
                    self.prepared.note(work.function, str(error))
                    one = _Sum(self, fed, request, work, place, keys, whole, model)
                    parts.append(one.form())
                    fed.adjust_calls(-1)
            except QuorumError as error:
                last = error
                if isinstance(error, TierError):
                    self.opened.tiers = error.left
                if not isinstance(error, MisbehaviourError):
                    self._rest(fed, cohort, one)
        if not parts:
            raise last or QuorumError(
                f"round {fed.round}: a sum of {request.function!r} was opened before and cannot be repeated without all of its clients; "
                "two sums would reveal the difference; wait for these clients, or start a new run with another seed"
                + (f" (cause: {self.opened.cause})" if self.opened.cause else "")
            )
        return parts[0] if len(parts) == 1 else together(parts)

    def _prepared(
        self,
        request: SumRequest,
        groups: Sequence[tuple[tuple[int, ...], bool]],
        keys: Mapping[int, bytes],
        place: tuple[int, int],
        works: int,
    ) -> Preparation | None:
        """Return the session that was prepared for a sum, or None; the reason is logged."""
        if not self.config.pipelined:
            return None
        again = len(groups) != 1 or groups[0][1]
        why = "this work was opened before in this round, and is summed over the same clients again" if again else ""
        return self.prepared.take(request.function, keys, place, why, works)

    def reply_size(self, model: Params, cohort: int) -> int:
        """Return the size in bytes of a masked reply with as many values as the model."""
        return Codec(self.config, cohort).size(Update(delta=model, weight=1))

    def _rest(self, fed: Federation, cohort: Sequence[int], lost: _Sum) -> None:
        """Exclude the clients that did not answer from the next attempt, if they are few and enough others are available.

        A sum that was being opened is first requested from the same clients once more, because all it allows afterwards is
        a split into halves. The same holds in a round in which other work was opened for them, which cannot be repeated
        without them.
        """
        left = len(cohort) - len(lost.silent)
        again = (
            not self.opened.mark_lost(lost.work.common, lost.opening) if lost.opening else self.opened.newly_missing(lost.silent)
        )
        if not again and 3 * len(lost.silent) <= len(cohort) and left >= max(3, self.config.least(left), fed.quorum):
            fed.excluded.rest(lost.silent, fed.round)

    def check(self, fed: Federation) -> list[str]:
        """Return the reasons why a cohort of this size cannot be summed securely; empty if it can."""
        return misfits(self.config, fed)


class _Sum:
    """One session of the protocol.

    Args:
        how: the aggregation.
        fed, request: the federation and the sum it requests.
        work: the work to sum.
        place: attempt and number of the call, from which clients name their random streams.
        keys: identity keys of the clients.
        whole: require every one of them in the sum.
        model: the model in segments, in a sum over parts of it.
        ready: the session that was prepared for this sum, if there is one.
    """

    def __init__(
        self,
        how: SecureAggregation,
        fed: Federation,
        request: SumRequest,
        work: Work,
        place: tuple[int, int],
        keys: Mapping[int, bytes],
        whole: bool,
        model: SegmentedModel | None = None,
        ready: Preparation | None = None,
    ) -> None:
        self.model, self.mail = model, None if ready is None else ready.mail
        self.how, self.fed, self.request, self.work, self.clients = how, fed, request, work, tuple(keys)
        trial, call = place
        task = work.task(fed.round, trial, call)
        facts = {"function": work.function, "trial": trial, "call": call, "task": task}
        if model is not None:
            facts |= {"parts": len(model.parts), "tiers": how.opened.tiers or tuple(range(len(model.parts)))}
        if ready is None:
            session = dataclasses.replace(new_session(keys, how.config, fed.round, fed.serial), **facts)  # type: ignore[arg-type]
            self.server = SecureServer(session, keys, len(keys) if whole else fed.quorum)
        else:
            self.server = ready.bound(task, fed.quorum)
        works = None if request.declared.peer_record is None else fed.works
        self.coming = None if whole else how.prepared.start(self.server, len(keys) == fed.num_clients, works)
        self.unprepared: set[int] = set()
        self.codec = Codec(how.config, len(keys), request.declared.limits, fed.round)
        self.shapes: dict[int, Any] = {}
        self.silent: set[int] = set()
        """Clients without a valid answer to some step."""
        self.opening: list[int] = []
        """Survivors, once the shares are requested."""
        self._preview()

    def form(self) -> Summed:
        """Run the protocol; record whose messages violated it, and exclude the clients that spoilt it."""
        try:
            return self._form()
        except MisbehaviourError as error:
            if error.survivors:  # opened, but unusable
                self.how.opened.mark_unusable(self.work.common, error.survivors, str(error))
            self.fed.excluded.blame(error.clients, self.fed.round)
            raise
        finally:
            self.fed.lost |= {client: f"refused: {why}" for client, why in self.server.refused.items()}

    def _form(self) -> Summed:
        message = self.request.message if self.model is None else self.model.head
        summed = self._decoded(carry_out(self.server, self._ask, message, self._add, self._signed, self.mail))
        function = self.work.function
        if self.mail is not None:
            self.fed.adjust_calls(2)
            self.how.prepared.used(function)
        if self.coming is not None:
            self.how.prepared.finish(self.coming)
        return summed

    def _signed(self, alive: list[int]) -> None:
        self.how.opened.record(self.work.common, alive)
        self.opening = alive
        self.fed.opened |= set(alive)

    def _ask(
        self, step: str, common: Tree, clients: Sequence[int], take: Callable[[int, Any], Any], own: Mapping[int, Any] | None = None
    ) -> None:
        def sink(receipt: Receipt) -> None:
            if receipt.dropped is None:
                came.add(receipt.client)
                try:
                    value = self._own_part(step, receipt.client, receipt.value)
                    if receipt.client not in self.unprepared:
                        take(receipt.client, value)
                except (PacelineError, *MALFORMED) as error:  # a client's message can invalidate its own answer only
                    self.server.refused[receipt.client] = f"malformed message: {type(error).__name__}: {error}"

        came: set[int] = set()
        own = self._with_preparation(step, clients, own)
        options: dict[str, Any] = {} if own is None else {"each_message": own}
        if step == "masked":  # the step in which the method's own function runs
            options["deadline"] = self.request.deadline
            if self.model is not None and self.server.tiers is not None and own is not None:
                owned, model = self.server.tiers.owned, self.model
                options["each_message"] = {c: {**mail, "parts": model.share(owned[c])} for c, mail in own.items()}
        self.fed.call(step, common, clients, Each(), program="secagg", sink=sink, **options)
        self.silent |= {c for c in clients if c not in came or c in self.server.refused}
        if self.unprepared:
            self.how.prepared.pause(self.work.function)
            raise UnpreparedError(
                f"clients {sorted(self.unprepared)} lost the keys that were prepared for it, or would declare another tier now"
            )

    def _with_preparation(self, step: str, clients: Sequence[int], own: Mapping[int, Any] | None) -> Mapping[int, Any] | None:
        """Return the clients' own messages, with what prepares the next session and what names a prepared one."""
        session = self.server.session
        if step == "masked" and own is not None:
            more: dict[str, Any] = {} if self.mail is None else {"prepared": {"function": session.function, "task": session.task}}
            more |= {} if self.coming is None else {"next": self.coming.id}
            return {c: {**mail, **more} for c, mail in own.items()}
        if step == "consistency" and self.coming is not None:
            coming = {c: near for c in clients if (near := self.coming.directory_for(c)) is not None}
            return {c: {"next": near} for c, near in coming.items()} or None
        return own

    def _own_part(self, step: str, client: int, message: Any) -> Any:
        """Return a reply without what prepares the next session, which is added to that session."""
        if step in ("masked", "unmask") and isinstance(message, dict):
            if (coming := message.pop("next", None)) is not None and self.coming is not None:
                (self.coming.add_advert if step == "masked" else self.coming.add_shares)(client, coming)
            if self.mail is not None and step == "masked" and "unprepared" in message:
                self.unprepared.add(client)
        return message

    def _preview(self) -> None:
        """Fix the required segments of every vector, if the server's own model determines them."""
        try:
            reply = self.fed.engine.preview(self.work.function, self.request.message)
            if reply is not None and self.model is not None:
                reply = split_reply(reply, self.model.places, 0)
            shape = None if reply is None else self.codec.shape(reply)
        except (PacelineError, *MALFORMED):
            return
        if shape is not None:
            self.server.expect(self.codec.segments(shape), repr(shape))

    def _add(self, client: int, message: Any) -> None:
        shape = message.pop("shape", None) if isinstance(message, dict) else None
        if isinstance(message, dict) and "accused" not in message:
            if not fits(self.codec, shape, message.get("table")):
                message = None
            else:
                message["segments"] = as_bytes(message.get("segments"))
        if self.server.add_masked(client, message, repr(shape)):
            self.shapes[client] = shape

    def _decoded(self, alive: list[int]) -> Summed:
        opened = self.server.open()
        try:
            summed = self.codec.decode(self.shapes[alive[0]], opened, alive)
            if self.model is not None:
                summed = joined(summed, self.model.places, self.model.layout)
        except SumOverflowError as error:
            raise MisbehaviourError(
                f"secure sum, round {self.fed.round}: {error}; the sender is one of clients {alive}", {}, alive
            ) from None
        except (AggregationError, *MALFORMED) as error:
            raise QuorumError(f"round {self.fed.round}: most clients announced an invalid reply structure: {error}") from None
        if summed.notes.get("failed", 0.0) >= len(alive):
            what = f"{self.work.function!r} failed on all of clients {alive}; see their logs"
            raise MisbehaviourError(f"secure sum, round {self.fed.round}: {what}", {}, alive)
        return dataclasses.replace(summed, notes={**summed.notes, "refused": float(len(self.server.refused))})
