"""Secure sums of which a server plays only some steps, and clients whose work fails."""

from paceline.aggregation.secure.encoding import signed
from paceline.aggregation.secure.preparation import Preparation
from paceline.aggregation.secure.program import secure_config
from paceline.engines.worker import Worker
from tests.network.liar import Sum

OPTIONS = {"gamma": 0.0}


class Partial(Sum):
    """A sum in which the server asks only whom it likes."""

    def __init__(self, server, params, clients, attempt, **more):
        super().__init__(server, params, clients=clients, attempt=attempt, config=secure_config(OPTIONS), **more)

    def go(self, sign=None, unmask=None, alive=None):
        """Go through the sum; return what was opened of ``main``, or None with the reasons in `why`."""
        self.advertise()
        self.share()
        reported = self.masked()
        self.why = [why for why, _ in reported.values() if why]
        if self.why:
            return None
        there = self.server.alive()
        if alive is not None:
            self.server._masked = there = alive
        reported = self.liar.ask("consistency", {"alive": there}, clients=sign or there, round=self.round)
        self.why = [why for why, _ in reported.values() if why]
        for client, (why, value) in reported.items():
            if why is None:
                self.server.add_signature(client, value)
        if self.why:
            return None
        signatures = self.server.signatures_for()
        asked = {c: signatures[c] for c in unmask or signatures}
        reported = self.liar.ask("unmask", None, clients=list(asked), each=asked, round=self.round)
        for client, (why, value) in reported.items():
            if why is None:
                self.server.add_unmasking(client, value)
        try:
            return next(signed(w, s) for s, w in self.server.open() if s.name == "main")
        except Exception as error:
            self.why = [str(error)]
            return None

    def go_on(self, before=None):
        """Go through a sum that opens, and prepare the next one; return what the clients sent masked, and its preparation.

        Args:
            before: preparation of this sum; without one keys and shares are exchanged first.
        """
        if before is None:
            self.advertise()
            self.share()
        else:
            self.server = before.bound(self.session.task, 1)
        coming = Preparation(self.server)
        named = {"prepared": {"function": "train", "task": self.session.task}}
        mail = None if before is None else {c: {**own, **named} for c, own in before.mail.items()}
        masked = self.masked(coming=coming.id, mail=mail)
        for client, (_, value) in masked.items():
            coming.add_advert(client, value["next"])
        alive = self.server.alive()
        near = {c: {"next": coming.directory_for(c)} for c in alive}
        self.step("consistency", {"alive": alive}, alive, self.server.add_signature, each=near)
        for client, (_, value) in self.unmask().items():
            coming.add_shares(client, value["next"])
        return masked, coming


def fail_on(monkeypatch, method, function, sample, error):
    """Let a method's function fail wherever one sample is among those that it gets: on a client, and in any try on its data."""
    real = getattr(method, function)

    def failing(program, client, message):
        if has(client, sample):
            raise error
        return real(program, client, message)

    failing.__client__ = real.__client__
    monkeypatch.setattr(method, function, failing)


def has(client, sample):
    """Return whether one sample is among a client's own."""
    return bool((client.train.x[client.train.index] == sample).flatten(1).all(1).any())


class Failing:
    """Lets one client's training fail, as a model can be made to do for whoever has certain data."""

    def __init__(self, monkeypatch, clients, error):

        self.updates, real = {}, Worker.invoke

        def invoke(worker, me, function, message):
            reply = real(worker, me, function, message)
            if me.ask.__name__ != "_untrained":
                self.updates[me._id] = reply.delta.vector.clone().numpy()
                if me._id in clients:
                    raise error
            return reply

        monkeypatch.setattr(Worker, "invoke", invoke)
