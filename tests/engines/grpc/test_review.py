"""Attacks on the whole path of a secure sum, each played to its end; without a corrupt client unless a test says so."""

import pytest

from paceline.aggregation.secagg import secure_config
from paceline.aggregation.secure.encoding import signed
from paceline.aggregation.secure.work import halves
from paceline.deploy.authority import Authority
from tests.engines.grpc.conftest import MOST
from tests.engines.grpc.liar import Sum

OPTIONS = {"gamma": 0.0}


@pytest.fixture
def sixteen(loopback):
    """Give a federation eight more members."""
    import shutil

    ca = Authority.open(loopback.root / "ca")
    for number in range(MOST, 16):
        ca.issue_client(f"client{number}").write(loopback.root / f"client{number}")
    for name in ("directory", "crl.pem"):
        shutil.copy(loopback.root / "ca" / name, loopback.root / "server" / name)
    for number in range(16):
        shutil.copy(loopback.root / "ca" / "directory", loopback.root / f"client{number}" / "directory")
    return loopback


class Partial(Sum):
    """A sum in which the server asks only whom it likes."""

    def __init__(self, server, params, clients, attempt, **more):
        super().__init__(server, params, clients=clients, attempt=attempt, config=secure_config(OPTIONS), **more)

    def go(self, sign=None, unmask=None, alive=None):
        """Go through the sum; return what was opened of ``main``, or None with the reasons in `why`."""
        self.advertise()
        self.share()
        told = self.masked()
        self.why = [why for why, _ in told.values() if why]
        if self.why:
            return None
        there = self.server.alive()
        if alive is not None:
            self.server._masked = there = alive
        told = self.liar.ask("consistency", {"alive": there}, clients=sign or there, round=self.round)
        self.why = [why for why, _ in told.values() if why]
        for client, (why, value) in told.items():
            if why is None:
                self.server.add_signature(client, value)
        if self.why:
            return None
        signatures = self.server.signatures_for()
        asked = {c: signatures[c] for c in unmask or signatures}
        told = self.liar.ask("unmask", None, clients=list(asked), each=asked, round=self.round)
        for client, (why, value) in told.items():
            if why is None:
                self.server.add_unmasking(client, value)
        try:
            return next(signed(w, s) for s, w in self.server.open() if s.name == "main")
        except Exception as error:
            self.why = [str(error)]
            return None


def test_a_quarter_that_was_not_asked_for_shares_shows_none_of_its_members(sixteen, liar, params):
    """A quarter gives its vectors and is not asked for shares. If the others opened their halves, the rest would be its sum.

    Its members have helped to open nothing, so they help to open a sum without the victim; but no half is split again.
    """
    server = liar(clients=16, cohort=16, secure=OPTIONS)
    everybody, attempts = list(range(16)), iter(range(1, 100))
    common = Sum(server, params, clients=everybody, config=secure_config(OPTIONS)).work.common
    first, second = halves(common, everybody, 3)
    known, quarter = halves(common, first, 3)
    rest = [c for c in everybody if c not in quarter]
    whole = Partial(server, params, everybody, next(attempts)).go(unmask=rest)
    assert whole is not None
    half = Partial(server, params, second, next(attempts)).go()
    assert half is not None
    Partial(server, params, first, next(attempts)).go(unmask=known)  # opens nothing, but lets them go on to their quarter
    other = Partial(server, params, known, next(attempts)).go()
    victim, *left = quarter
    last = Partial(server, params, left, next(attempts))
    without = last.go()
    if other is not None and without is not None:
        raise AssertionError(f"the server holds client {victim}'s update: {(whole - half - other - without)[:5]}")
    assert other is None


@pytest.mark.parametrize("method", ["fjord"])
def test_a_memory_that_changes_does_not_make_other_work(liar, params, method):
    """The function notes something in its memory, which does not change its answer: the server takes a client out in between."""
    server = liar(method=method, secure=OPTIONS)
    found = [Partial(server, params, clients, attempt).go() for attempt, clients in ((1, [0, 1, 2, 3]), (2, [0, 1, 2]))]
    assert found[0] is not None
    assert found[1] is None, f"the server holds client 3's update: {(found[0] - found[1])[:5]}"
