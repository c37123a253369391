"""What a client opens over its whole life: sets of one piece of work are equal or have nobody in common."""

import itertools

import numpy as np
import pytest

from paceline.aggregation.secure.openings import Openings
from paceline.aggregation.secure.work import OwnWork, halves
from paceline.errors import DiskFullError, ProtocolError, StoreError

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


def test_halves_may_be_opened_and_their_halves():
    book, everybody = Openings(), tuple(range(12))
    assert opens(book, everybody)
    mine = next(half for half in halves(WORK.common, everybody, 3) if 0 in half)
    assert not opens(book, sorted(everybody)[:6]) or tuple(range(6)) == mine
    assert opens(book, mine)
    assert not opens(book, mine[:-1])  # a half from which somebody dropped out would be shown by the whole
    quarter = next(half for half in halves(WORK.common, mine, 3) if 0 in half)
    assert opens(book, quarter)
    assert opens(book, everybody)


def test_no_combination_of_what_clients_open_shows_fewer_than_the_least():
    """A server asks 12 clients for every set that it likes, in any order; what they open spans no sum over fewer than 3."""
    rng = np.random.default_rng(0)
    everybody = range(12)
    books = {c: Openings() for c in everybody}
    opened = []
    wishes = [tuple(everybody), *halves(WORK.common, everybody, 3)]
    wishes += [h for half in wishes[1:] for h in halves(WORK.common, half, 3)]
    wishes += [tuple(sorted(rng.choice(12, size=int(rng.integers(3, 12)), replace=False).tolist())) for _ in range(200)]
    for wish in [wishes[0], *rng.permutation(np.array(wishes, dtype=object)).tolist()]:
        wish = tuple(wish)
        willing = []
        for client in wish:
            try:
                books[client].check(WORK, "r", 1, wish, three)
                willing.append(client)
            except ProtocolError:
                pass
        if len(willing) == len(wish):  # each of them has to give its shares
            for client in wish:
                books[client].record(WORK, "r", 1, wish)
            opened.append([float(c in wish) for c in everybody])
    assert len(opened) >= 7
    rows = np.array(opened)
    rank = np.linalg.matrix_rank(rows)
    for size in (1, 2):
        for few in itertools.combinations(everybody, size):
            for signs in itertools.product((1.0, -1.0), repeat=size):
                target = np.zeros(12)
                target[list(few)] = signs
                assert np.linalg.matrix_rank(np.vstack([rows, target])) == rank + 1, few


def test_the_same_model_with_other_options_needs_a_difference():
    book = Openings(least_difference=3)
    assert opens(book, [1, 2, 3, 4])
    for near in ([1, 2, 3], [1, 2, 3, 5], [1, 2, 3, 4, 5]):
        with pytest.raises(ProtocolError, match="3 are demanded"):
            book.check(OTHER_OPTIONS, "r", 1, near, three)
    assert opens(book, [1, 2, 3, 4], work=OTHER_OPTIONS)
    far = OwnWork(b"f" * 32, b"f" * 32, b"v" * 32)
    assert opens(book, [1, 6, 7, 8], work=far)
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
    with pytest.raises(StoreError, match=r"openings\.db cannot be used .* put a copy back"):
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

    with pytest.raises(DiskFullError, match="no room"):
        fill()
