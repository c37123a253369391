"""A server that lies: good certificates, real streams, and whatever it likes to ask. What clients refuse stands in their own logs."""

import asyncio
import dataclasses
import itertools

from paceline.aggregation.secure.messages import as_bytes
from paceline.aggregation.secure.program import secure_config
from paceline.aggregation.secure.server import SecureServer
from paceline.aggregation.secure.session import new_session
from paceline.aggregation.secure.task_hash import Agreement, Work
from paceline.core.engine import Call, Each
from paceline.core.layout import Layout
from paceline.core.method import client_functions
from paceline.core.serialization import NETWORK
from paceline.deploy.identity.admission import Gate
from paceline.deploy.identity.keys import PinnedDirectory
from paceline.deploy.identity.trust import Trust
from paceline.deploy.plan import Plan, offer
from paceline.network import Credentials, Hub, HubSettings, LoopThread, Patience, Progress, Server
from paceline.network.frames import MessagePart
from paceline.network.handshake import HIDDEN
from paceline.network.pending_call import PendingCall
from paceline.registry import find_method
from paceline.run import RunConfig

STRICT = """
[secure_aggregation]
gamma = 0.0
[cohort]
least = 3
least_quorum = 3
[limits]
rounds = 5
message_bytes = "1 MB"
"""
RUN = {"method": "fedavg", "task": "blobs", "clients": 4, "cohort": 4, "rounds": 5, "aggregation": "secure", "on_error": "drop"}
SECURE = {"threshold": 3, "gamma": 0.0}


class Liar:
    """A server with good certificates that asks what it likes."""

    def __init__(self, loopback, policy=STRICT, clients=4, plan=None, name="lie", join=True, **run):
        self.loopback = loopback
        root = loopback.root
        self.config = RunConfig.build({**RUN, "clients": clients, "secure": SECURE, **run})
        trust = Trust.load(root / "server" / "trust.pem")
        self.directory = PinnedDirectory(root / "server" / "directory", trust)
        gate = Gate(trust, root / "server" / "directory", root / "server" / "crl.pem")
        facts = self.offer(plan)
        self.hub = Hub(gate, Progress(name, 1), facts, HubSettings(heartbeat=5.0))
        self.agreed = Agreement.of(self.config, find_method(self.config.method))
        self.loop = LoopThread("liar")
        credentials = Credentials.read(root / "server" / "server.key", root / "server" / "server.pem", trust.roots)
        self.server = Server(self.hub, credentials, "127.0.0.1:0")
        self.port = self.loop.wait(self.server.start())
        self.numbers = itertools.count((1 << 32) + 1)
        self.clients = range(clients)
        for number in self.clients if join else ():
            loopback.client(number, self.port, policy)
        if join:
            self.together()

    def offer(self, plan=None):
        """Return what joining clients get."""
        return offer(self.config, plan or Plan.of(self.config), Layout.of(self.loopback.task.build(0)))

    def together(self):
        """Wait until all clients have joined, or said why not."""
        clients = len(self.clients)
        self.wait(lambda: len(self.hub.dispatcher.refusals) + sum(s.ready for s in self.hub.sessions.values()) == clients)

    def wait(self, condition):
        async def until():
            while not condition():
                await asyncio.sleep(0.01)

        self.loop.wait(until(), 10)

    def ask(
        self,
        function,
        message=None,
        program="secagg",
        clients=None,
        each=None,
        round=1,
        number=None,
        kind="each",
        stream="s",
        open=(None, HIDDEN),
        **head,
    ):
        """Put any call to clients; return what each gave: (reason or None, value or None).

        What the client sends of its reason is one of the texts in `open`; the reason is read in its own log.
        """
        clients = list(self.clients if clients is None else clients)
        number = next(self.numbers) if number is None else number
        facts = {"id": number, "program": program, "function": function, "round": round, "take": 0, "stream": stream}
        facts |= {"deadline": None, "channel": {"kind": kind}, "cohort": len(clients), "operation": 1, **head}
        call = Call(function, message, clients, round, stream, Each(), program, each or {})
        phase = PendingCall(number, call, function, facts, MessagePart.of(message), Patience(phase=5.0))
        before = {c: len(self.logged(c)) for c in clients}
        self.loop.call(self.hub.dispatcher.open, phase)
        reported, self.heads = {}, {}
        for _ in clients:
            arrival = phase.arrivals.get(timeout=10)
            reply = arrival.message
            value = reply.tree(0, NETWORK) if reply is not None and reply.parts else None
            why = arrival.why if reply is None else reply.head["dropped"]
            if reply is not None:
                self.heads[arrival.client] = dict(reply.head)
                assert why in open, f"client {arrival.client} sent the reason {why!r}"
            if reply is not None and why is not None:
                [why] = self.logged(arrival.client)[before[arrival.client] :]
            reported[arrival.client] = (why, value)
        self.loop.call(self.hub.dispatcher.shut)
        return reported

    def logged(self, client):
        """Return what a client's own log says of why it did not answer."""
        return [facts["why"] for facts in self.loopback.client_lines.of("not_answered") if facts["client"] == client]

    def close(self):
        self.loop.wait(self.server.stop("enough", True))
        self.loop.stop()


class Sum:
    """One secure sum, step by step, so that any step can be another.

    Args:
        liar: the server.
        params: the message.
        changes: of the session's facts.
    """

    def __init__(self, liar, params=None, round=1, attempt=1, clients=None, config=None, function="train", **changes):
        self.liar, self.round, self.params = liar, round, params
        made = new_session(list(liar.clients if clients is None else clients), config or secure_config(SECURE), round, attempt)
        declared = client_functions(find_method(liar.config.method))[function]
        self.work = Work.of(liar.agreed, function, declared, params)
        place = {"function": function, "trial": 0, "call": 1, **changes}
        place.setdefault("task", self.work.task(round, place["trial"], place["call"]))
        self.session = dataclasses.replace(made, **place)
        self.server = SecureServer(self.session, liar.directory.publics(self.session.clients), 1)

    def step(self, name, message, clients, take, **options):
        reported = self.liar.ask(name, message, clients=clients, round=self.round, **options)
        for client, (why, value) in reported.items():
            if why is None:
                take(client, value)
        return reported

    def advertise(self, **changes):
        return self.step("advertise", {**self.session.plain(), **changes}, self.session.clients, self.server.add_advert)

    def share(self, **more):
        hashes, adverts = self.server.directory_for()
        return self.step("share", {"hashes": hashes, **more}, list(adverts), self.server.add_shares, each=adverts)

    def masked(self, params=None, coming=None, mail=None, **options):
        mail = self.server.inbox_for() if mail is None else mail
        if coming is not None:  # ask for keys of the next round
            mail = {c: {**own, "next": coming} for c, own in mail.items()}
        take = lambda c, m: self.server.add_masked(c, {**m, "segments": as_bytes(m["segments"])})  # noqa: E731
        return self.step("masked", self.params if params is None else params, list(mail), take, each=mail, **options)

    def consistency(self, alive=None):
        self.alive = self.server.alive()
        return self.step("consistency", {"alive": alive or self.alive}, self.alive, self.server.add_signature)

    def unmask(self):
        signatures = self.server.signatures_for()
        return self.step("unmask", None, list(signatures), self.server.add_unmasking, each=signatures)

    def to_masked(self):
        self.advertise()
        self.share()
        self.masked()
        return self

    def to_end(self):
        """Go through the whole sum; return what the last step brought."""
        self.to_masked().consistency()
        return self.unmask()


def reasons(reported):
    """Return why nobody answered."""
    assert all(value is None for _, value in reported.values()), "a client answered"
    assert all(why for why, _ in reported.values())
    return " ".join(why for why, _ in reported.values())
