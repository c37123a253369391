"""What a client remembers of the sums that its vectors are in."""

import pytest

from paceline.aggregation.secure.openings import Openings
from paceline.aggregation.secure.work import OwnWork, halves
from paceline.errors import ProtocolError

WORK = OwnWork(b"common", b"work", b"version")
TEN = list(range(10))


def least(clients):
    return 3


def allowed(book, survivors, work=WORK):
    try:
        book.check(work, "run", 1, survivors, least)
    except ProtocolError:
        return False
    return True


@pytest.mark.parametrize(
    ("survivors", "fine"),
    [
        (TEN, True),
        (TEN[:6], True),
        (TEN[:5], False),
        (TEN[:3], False),
        ([0, *range(20, 22)], True),  # its own vector among two others
        ([0, 1, *range(20, 23)], False),
        ([0, 1, *range(20, 24)], True),
    ],
)
def test_a_vector_of_which_nothing_more_was_heard(tmp_path, survivors, fine):
    book = Openings(tmp_path / "book.db")
    book.give(WORK, TEN)
    for each in (book, Openings(tmp_path / "book.db")):  # a client that was started again
        assert allowed(each, survivors) is fine
        assert allowed(each, survivors, OwnWork(b"c", b"other options", b"version")) is fine
        assert allowed(each, survivors, OwnWork(b"c", b"other", b"model"))


def test_the_halves_of_a_list_that_was_signed():
    book = Openings()
    vector = book.give(WORK, TEN)
    book.narrow(vector, TEN[:6])
    for half in halves(b"common", TEN[:6], 3):
        assert allowed(book, half)
    others = next(c for c in ([0, 1, 2], [0, 1, 3]) if tuple(c) not in halves(b"common", TEN[:6], 3))
    assert not allowed(book, others)


def test_a_sum_s_own_vector_does_not_stand_in_its_way():
    book = Openings()
    vector = book.give(WORK, TEN)
    book.check(WORK, "run", 1, TEN[:4], least, vector)
    book.record(WORK, "run", 1, TEN[:4], vector)
    assert allowed(book, TEN[:4])  # settled: what counts is what was opened
    assert not allowed(book, TEN)

