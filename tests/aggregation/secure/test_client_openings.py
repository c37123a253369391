"""What a client opens over its whole life: sets of one piece of work are equal or have nobody in common."""

import contextlib
import json
import math
import sqlite3

import numpy as np
import pytest
import torch

from paceline.aggregation.secure.client_openings import Openings
from paceline.aggregation.secure.config import SecureConfig
from paceline.aggregation.secure.covers import Cover
from paceline.aggregation.secure.session import least_half, sizes
from paceline.aggregation.secure.task_hash import Agreement, OwnWork, Work, halves
from paceline.core.engine import ClientFunction
from paceline.core.errors import DiskFullError, ProtocolError, StoreError

WORK = OwnWork(b"c" * 32, b"w" * 32, b"v" * 32)
OTHER_OPTIONS = OwnWork(b"d" * 32, b"x" * 32, b"v" * 32)


def three(size):
    return 3


def opens(book, survivors, work=WORK, run="r", round=1):
    """Open a sum if the book allows it; return whether it does."""
    try:
        book.check(work, run, round, survivors, three)
    except ProtocolError:
        return False
    book.record(work, run, round, survivors)
    return True


@pytest.mark.parametrize(("run", "round"), [("r", 1), ("r", 2), ("another", 1)])
def test_another_set_of_survivors_is_refused_whatever_run_and_round_are_called(run, round):
    book = Openings()
    assert opens(book, [1, 2, 3, 4])
    assert not opens(book, [1, 2, 3], run=run, round=round)
    assert not opens(book, [1, 2, 3, 5], run=run, round=round)
    assert not opens(book, [1, 2, 3, 4, 5], run=run, round=round)
    assert opens(book, [4, 3, 2, 1], run=run, round=round)
    assert opens(book, [1, 2, 3], work=OwnWork(b"e" * 32, b"y" * 32, b"z" * 32))


def test_halves_may_be_opened_and_no_halves_of_these():
    book, everybody = Openings(), tuple(range(12))
    assert opens(book, everybody)
    mine = next(half for half in halves(WORK.common, everybody, 3) if 0 in half)
    assert not opens(book, sorted(everybody)[:6]) or tuple(range(6)) == mine
    assert opens(book, mine)
    assert not opens(book, mine[:-1])  # a half from which somebody dropped out would be shown by the whole
    quarter = next(half for half in halves(WORK.common, mine, 3) if 0 in half)
    assert not opens(book, quarter)
    assert opens(book, everybody)


class Server:
    """Opens whatever it can: it chooses cohorts, survivors and who is asked for shares."""

    def __init__(self, size, rng):
        self.size, self.rng, self.config = size, rng, SecureConfig(gamma=0.0)
        self.books = {c: Openings() for c in range(size)}
        self.opened = []

    def least(self, clients):
        return least_half(clients, self.config)

    def willing(self, cohort, alive):
        """Return who gives a vector, and of these who gives shares."""
        gave = [c for c in cohort if self.allows(c, cohort)]
        return gave, [c for c in gave if c in alive and self.allows(c, alive)]

    def allows(self, client, clients):
        try:
            self.books[client].check(WORK, "r", 1, clients, self.least)
        except ProtocolError:
            return False
        return True

    def open(self, cohort, alive=None, silent=()):
        """Try to open a sum without asking `silent` for shares; return whether it comes out."""
        cohort, alive = sorted(cohort), sorted(cohort if alive is None else alive)
        _, t = sizes(len(cohort), self.config)
        gave, signed = self.willing(cohort, alive)
        if len(alive) < 3 or not set(alive) <= set(gave) or len(signed) <= t:
            return False
        helps = [c for c in signed if c not in silent]
        for client in helps:  # it cannot know whether enough others do
            self.books[client].record(WORK, "r", 1, alive)
        if any(sum(h != c for h in helps) < t for c in alive):  # nobody holds a share of its own secret
            return False
        self.opened.append([float(c in alive) for c in range(self.size)])
        return True

    def shown(self):
        """Return clients whose own update follows from what was opened."""
        rows = np.array(self.opened)
        rank = np.linalg.matrix_rank(rows)
        return [c for c in range(self.size) if np.linalg.matrix_rank(np.vstack([rows, np.eye(self.size)[c]])) == rank]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("size", [6, 9, 13, 16, 24])
def test_no_combination_of_what_a_server_opens_shows_one_client(size, seed):
    """It leaves as many as it can without news of each sum, where it hurts most, and then tries every set that it likes."""
    rng = np.random.default_rng(seed)
    server, everybody = Server(size, rng), range(size)
    parts = halves(WORK.common, everybody, server.least(size))
    _, t = sizes(size, server.config)
    spare = size - t - 1
    first = list(parts[0]) if parts else list(everybody)
    silent = rng.permutation(first).tolist()[:spare]
    assert server.open(everybody, silent=silent)
    for part in parts:
        server.open(part, silent=[c for c in silent if c in part][: max(len(part) - sizes(len(part), server.config)[1] - 1, 0)])
    for one in parts:
        for quarter in halves(WORK.common, one, 3):
            assert not server.open(quarter) or set(quarter) <= set(silent)
    for victim in silent:
        server.open([c for c in silent if c != victim])
    for _ in range(150):
        cohort = rng.permutation(size)[: rng.integers(3, size + 1)].tolist()
        gone = rng.permutation(cohort)[: rng.integers(0, 3)].tolist()
        server.open(cohort, [c for c in cohort if c not in gone], rng.permutation(cohort)[: rng.integers(0, size)].tolist())
    assert server.shown() == []


class Corrupt(Server):
    """The same with corrupt clients: they answer whatever they are asked, and their own updates are known."""

    def __init__(self, size, rng, corrupt):
        super().__init__(size, rng)
        self.config, self.corrupt = SecureConfig(gamma=0.1), set(corrupt)

    def allows(self, client, clients):
        return client in self.corrupt or super().allows(client, clients)

    def shown(self):
        self.opened += [[float(c == one) for c in range(self.size)] for one in self.corrupt]
        return [c for c in super().shown() if c not in self.corrupt]


def attack(server, everybody):
    """Leave all free clients of one half, and the corrupt ones, for a sum of their own; then try whatever is left."""
    parts = halves(WORK.common, everybody, 3)
    _, t = sizes(len(everybody), server.config)
    first = [c for c in parts[0] if c not in server.corrupt]
    silent = first[: len(everybody) - t - 1]
    assert server.open(everybody, silent=silent)
    server.open(parts[1])
    server.open([*silent, *server.corrupt])
    server.open([*silent, *sorted(server.corrupt)[:1]])
    for _ in range(120):
        cohort = server.rng.permutation(server.size)[: server.rng.integers(3, server.size + 1)].tolist()
        server.open(cohort, silent=server.rng.permutation(cohort)[: server.rng.integers(0, server.size)].tolist())
    return server.shown()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 21, 24, 30])
def test_corrupt_helpers_do_not_show_one_client_either(size, seed):
    """All corrupt clients are in the half that the server attacks."""
    everybody = range(size)
    corrupt = halves(WORK.common, everybody, 3)[0][: math.ceil(0.1 * size)]
    assert attack(Corrupt(size, np.random.default_rng(seed), corrupt), everybody) == []


@pytest.mark.parametrize("size", [11, 13])
def test_with_fewer_honest_helpers_in_a_half_they_would(size, monkeypatch):
    everybody = range(size)
    corrupt = halves(WORK.common, everybody, 3)[0][: math.ceil(0.1 * size)]
    server = Corrupt(size, np.random.default_rng(0), corrupt)
    assert least_half(size, server.config) == size
    monkeypatch.setattr(server, "least", lambda clients: 4)
    assert attack(server, everybody)


def splitting(server):
    """Play the attack on a rule that also allows halves of halves; return what is shown."""
    everybody = tuple(range(16))
    first, second = halves(WORK.common, everybody, 3)
    known, quarter = halves(WORK.common, first, 3)
    assert server.open(everybody, silent=quarter)
    assert server.open(second)
    server.open(first, silent=quarter)  # opens nothing, but those who help go on to their own half of it
    server.open(known)
    server.open(quarter[1:])
    return server.shown()


def test_halves_of_halves_would_show_one_client(monkeypatch):
    """Four of sixteen need not help with the whole, and can all be in one quarter; then they would open three of it."""
    assert splitting(Server(16, np.random.default_rng(0))) == []

    def looser(client, clients, server):
        before = [json.loads(text) for (text,) in server.books[client]._all("SELECT survivors FROM opened")]
        return (
            not before or sorted(clients) in before or any(tuple(sorted(clients)) in halves(WORK.common, old, 3) for old in before)
        )

    server = Server(16, np.random.default_rng(0))
    monkeypatch.setattr(server, "allows", lambda client, clients: looser(client, clients, server))
    assert len(splitting(server)) == 1


@pytest.mark.parametrize(
    ("clients", "options", "least"),
    [
        (5, {}, 5),
        (6, {}, 3),
        (6, {"threshold": 4}, 6),
        (7, {}, 7),
        (16, {"gamma": 0.1}, 5),
        (11, {"gamma": 0.1}, 11),  # two corrupt clients and two that did not help leave one in a half of five
        (18, {"gamma": 0.1}, 5),
        (18, {"gamma": 0.2}, 18),
        (100, {"gamma": 0.1}, 100),
        (100, {"complete_up_to": 100}, 3),
    ],
)
def test_who_may_be_split(clients, options, least):
    """Sparse graphs open with little more than half of the clients, so the others could open what they like."""
    assert least_half(clients, SecureConfig(**{"gamma": 0.0, **options})) == least


@pytest.mark.parametrize(("gamma", "whole"), [(0.0, [3, 4, 5, 7]), (0.1, [3, 4, 5, 6, 7, 11, 13]), (0.2, [*range(3, 51)])])
def test_the_documents_name_the_cohorts_that_cannot_be_split(gamma, whole):
    config = SecureConfig(gamma=gamma)
    assert [n for n in range(3, 51) if not halves(b"", range(n), least_half(n, config)) or least_half(n, config) == n] == whole


def test_the_same_model_with_other_options_needs_a_difference():
    book = Openings(least_difference=3)
    assert opens(book, [1, 2, 3, 4])
    for near in ([1, 2, 3], [1, 2, 3, 5], [1, 2, 3, 4, 5]):
        with pytest.raises(ProtocolError, match="the minimum is 3"):
            book.check(OTHER_OPTIONS, "r", 1, near, three)
    assert opens(book, [1, 2, 3, 4], work=OTHER_OPTIONS)
    far = OwnWork(b"f" * 32, b"f" * 32, b"v" * 32)
    with pytest.raises(ProtocolError, match="several such sums together could reveal single clients"):
        book.check(far, "r", 1, [1, 6, 7, 8], three)
    assert opens(Openings(least_difference=1), [1, 6, 7, 8], work=far)
    assert opens(Openings(), [1, 2, 3], work=OTHER_OPTIONS)


def test_openings_of_a_round_are_counted_whatever_they_are():
    book = Openings(most=2)
    works = [OwnWork(bytes([i]) * 32, bytes([i]) * 32, bytes([i]) * 32) for i in range(3)]
    assert opens(book, [1, 2, 3], works[0])
    assert opens(book, [1, 2, 3], works[1])
    with pytest.raises(ProtocolError, match="2 sums of round 1 were opened"):
        book.check(works[2], "r", 1, [1, 2, 3], three)
    assert opens(book, [1, 2, 3], works[2], round=2)
    assert opens(book, [1, 2, 3], works[2], run="another")


def test_a_book_survives_a_restart(tmp_path):
    book = Openings(tmp_path / "a" / "openings.db", 3)
    assert opens(book, [1, 2, 3, 4])
    again = Openings(tmp_path / "a" / "openings.db", 3)  # killed: it was not closed
    assert not opens(again, [1, 2, 3])
    assert opens(again, [1, 2, 3, 4])
    book.close()
    book.close()


def test_a_damaged_book_is_named_at_the_start(tmp_path):
    (tmp_path / "openings.db").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match=r"openings\.db cannot be used .* restore it from a backup"):
        Openings(tmp_path / "openings.db").open()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be used"):
        Openings(tmp_path / "file" / "openings.db").open()


def test_without_room_nothing_is_opened(tmp_path):
    book = Openings(tmp_path / "openings.db")
    book.open()
    pages = book._db.execute("PRAGMA page_count").fetchone()[0]
    book._db.execute(f"PRAGMA max_page_count={pages}")

    def fill():
        for number in range(2000):
            book.record(WORK, "r", number, range(50))

    with pytest.raises(DiskFullError, match="no disk space"):
        fill()


def test_what_work_depends_on():
    """Memory makes other work, but not another model version; what the protocol itself keeps makes neither."""

    def own(message, memory):
        return Work.of(Agreement(), "train", ClientFunction(), message).own(memory)

    model = {"params": torch.zeros(3)}
    one, other, later = own(model, {}), own(model, {"control": torch.ones(3)}), own(model, {"_times": [1.0], "_secagg": [1, 1]})
    assert one == later
    assert (one.common, one.version) == (other.common, other.version)
    assert one.work != other.work
    assert own(None, {}).version != own(None, {"theta": torch.ones(3)}).version  # of a message without a model
    assert own({"params": torch.ones(3)}, {}).version != one.version


def test_only_the_owner_reads_what_was_opened(tmp_path):
    book = Openings(tmp_path / "openings.db")
    assert opens(book, [0, 1, 2])
    assert (tmp_path / "openings.db").stat().st_mode & 0o777 == 0o600
    book.close()


def test_a_refusal_says_what_an_operator_can_do():
    book = Openings(least_difference=3)
    assert opens(book, [0, 1, 2, 3])
    with pytest.raises(ProtocolError, match=r"same clients, or start a run with another seed"):
        book.check(WORK, "r", 1, [0, 1, 2], three)
    with pytest.raises(ProtocolError, match="another seed"):
        book.check(OTHER_OPTIONS, "s", 1, [0, 1, 2], three)


def test_two_processes_of_a_client_do_not_open_two_sums_at_once(tmp_path, monkeypatch):
    """Another process cannot open a sum between the last check of this one and its record."""
    book, other = Openings(tmp_path / "openings.db"), Openings(tmp_path / "openings.db")
    other.open()
    other._db.execute("PRAGMA busy_timeout=0")
    real = book.check

    def check(*facts):
        real(*facts)
        with pytest.raises(StoreError, match="locked"):
            other.open_sum(WORK, "r", 1, Cover.of([1, 2, 3, 4]), three)

    monkeypatch.setattr(book, "check", check)
    book.open_sum(WORK, "r", 1, Cover.of([1, 2, 3]), three)
    with pytest.raises(ProtocolError, match="opened before"):
        other.open_sum(WORK, "r", 1, Cover.of([1, 2, 3, 4]), three)
    other.open_sum(WORK, "r", 1, Cover.of([1, 2, 3]), three)  # the refusal has ended the transaction
    assert [text for (text,) in other._all("SELECT survivors FROM opened")] == [Cover.of([1, 2, 3]).text()] * 2


HAIR = OwnWork(b"h" * 32, b"h" * 32, b"h" * 32, "train")
BEFORE = OwnWork(b"c" * 32, b"w" * 32, b"v" * 32, "train")


@pytest.mark.parametrize(
    ("scope", "run", "round", "function", "fine"),
    [
        ("model", "r", 1, "train", True),
        ("round", "r", 1, "train", False),
        ("round", "r", 1, "evaluate", True),
        ("round", "r", 2, "train", True),
        ("round", "s", 1, "train", True),
        ("always", "r", 1, "train", False),
        ("always", "s", 9, "evaluate", False),
    ],
)
def test_which_sums_must_differ(scope, run, round, function, fine):
    book = Openings(least_difference=3, scope=scope)
    assert opens(book, [1, 2, 3, 4], BEFORE)
    later = OwnWork(b"h" * 32, b"h" * 32, b"h" * 32, function)
    assert opens(book, [1, 2, 3], later, run, round) is fine
    near = scope == "round" or (scope, run, round, function) == ("always", "r", 1, "train")  # to one of the two
    assert opens(book, [1, 6, 7, 8], OwnWork(b"i" * 32, b"i" * 32, b"i" * 32, function), run, round) is not near


LINES = [[0, 1, 2], [0, 3, 4], [0, 5, 6], [1, 3, 5], [1, 4, 6], [2, 3, 6], [2, 4, 5]]
"""Any two share one client and differ in four; the seven sums have one solution."""


@pytest.mark.parametrize("scope", ["model", "round", "always"])
def test_cohorts_that_differ_widely_show_no_single_client_together(scope):
    books = [Openings(least_difference=3, scope=scope) for _ in range(7)]
    opened = []
    for number, line in enumerate(LINES):
        key = bytes([number]) * 32
        work = OwnWork(key, key, b"v" * 32 if scope == "model" else key, "train")
        if all([opens(books[client], line, work) for client in line]):
            opened.append([float(c in line) for c in range(7)])
    assert np.linalg.matrix_rank(np.array(opened)) == 1


def test_after_a_split_nearly_the_same_work_is_not_split_otherwise():
    """Halves follow from the work, so a server that tries last digits finds halves that differ in as few as it likes."""
    book, everybody = Openings(least_difference=3, scope="round"), tuple(range(12))
    works = [OwnWork(bytes([i]) * 32, bytes([i]) * 32, bytes([i]) * 32, "train") for i in range(2)]
    mine = [next(half for half in halves(work.common, everybody, 3) if 0 in half) for work in works]
    assert mine[0] != mine[1]
    assert all(opens(book, everybody, work) for work in works)
    assert opens(book, mine[0], works[0])
    assert not opens(book, mine[1], works[1])
    assert opens(book, mine[0], works[0])


def test_a_book_of_a_version_that_noted_no_function_still_counts(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "openings.db")) as db:
        db.execute("CREATE TABLE opened (work BLOB, version BLOB, survivors TEXT, run TEXT, round INTEGER)")
        db.execute("INSERT INTO opened VALUES (?, ?, ?, ?, ?)", (BEFORE.work, BEFORE.version, "[1, 2, 3, 4]", "r", 1))
        db.commit()
    book = Openings(tmp_path / "openings.db", least_difference=3, scope="round")
    assert not opens(book, [1, 2, 3], BEFORE)
    assert not opens(book, [1, 2, 3], HAIR)
    assert opens(book, [1, 2, 3], HAIR, round=2)
