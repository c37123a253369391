"""What a server asks again in a round, so that clients answer."""

import json

import pytest

from paceline.aggregation.secure.server_openings import OpenedSums
from paceline.aggregation.secure.task_hash import halves
from paceline.core.errors import StoreError

COMMON = b"c" * 32
ALL = tuple(range(8))


def three(size):
    return 3


def test_first_all_are_asked():
    assert OpenedSums().groups(COMMON, ALL, three) == [(ALL, False)]


def test_an_opened_sum_is_asked_of_the_same_clients_and_of_new_ones():
    opened = OpenedSums()
    opened.record(COMMON, [0, 1, 2, 3])
    assert opened.groups(COMMON, ALL, three) == [((4, 5, 6, 7), False), ((0, 1, 2, 3), True)]
    assert opened.groups(COMMON, (0, 1, 2, 3, 4), three) == [((0, 1, 2, 3), True)]  # one new client alone would be shown
    assert opened.groups(COMMON, (4, 5, 6), three) == [((4, 5, 6), False)]
    assert opened.groups(COMMON, (0, 1, 2), three) == []
    assert opened.groups(b"d" * 32, ALL, three) == [(ALL, False)]
    assert opened.clients() == {0, 1, 2, 3}


def test_a_spoilt_sum_is_asked_in_halves():
    opened = OpenedSums()
    opened.record(COMMON, ALL)
    opened.mark_unusable(COMMON, ALL, "too large")
    one, other = halves(COMMON, ALL, 3)
    assert opened.groups(COMMON, ALL, three) == [(one, True), (other, True)]
    without = tuple(c for c in ALL if c != one[0])
    assert opened.groups(COMMON, without, three) == [(other, True)]
    opened.record(COMMON, one)
    assert opened.groups(COMMON, ALL, three) == [(other, True), (one, True)]
    opened.mark_unusable(COMMON, one, "too large")  # a half of four cannot be split again
    assert opened.groups(COMMON, ALL, three) == [(other, True)]


def test_an_opened_sum_whose_clients_are_not_all_there_is_asked_in_halves():
    opened = OpenedSums()
    opened.record(COMMON, ALL)
    one, other = halves(COMMON, ALL, 3)
    assert opened.groups(COMMON, [c for c in ALL if c != other[0]], three) == [(one, True)]


def test_a_new_round_forgets():
    opened = OpenedSums()
    opened.begin(1)
    opened.record(COMMON, ALL)
    opened.begin(1)
    assert opened.clients() == set(ALL)
    opened.begin(2)
    assert opened.clients() == set()
    opened.begin(1)
    assert opened.clients() == set()  # nothing but a file is for rounds that are repeated later


def test_a_restart_does_not(tmp_path):
    opened = OpenedSums(tmp_path / "opened.json")
    opened.begin(4)
    opened.record(COMMON, ALL)
    again = OpenedSums(tmp_path / "opened.json")
    again.begin(4)
    assert again.groups(COMMON, (0, 1, 2), three) == []
    again.mark_unusable(COMMON, ALL, "too large")
    assert json.loads((tmp_path / "opened.json").read_text())["rounds"]["4"][COMMON.hex()][0]["spoilt"] is True


def test_a_restart_may_repeat_several_rounds(tmp_path):
    """Those since the last checkpoint; what came before is forgotten."""
    opened = OpenedSums(tmp_path / "opened.json")
    for round in range(1, 6):
        opened.begin(round)
        opened.record(COMMON, [c for c in ALL if c != round])
        if round == 2:
            opened.settled(2)
    again = OpenedSums(tmp_path / "opened.json")
    for round in (3, 4, 5):
        again.begin(round)
        assert again.groups(COMMON, ALL, three) == [(tuple(c for c in ALL if c != round), True)]
    again.begin(1)
    assert again.groups(COMMON, ALL, three) == [(ALL, False)]
    assert set(json.loads((tmp_path / "opened.json").read_text())["rounds"]) == {"3", "4", "5"}


def test_a_file_of_one_round_is_read_too(tmp_path):
    (tmp_path / "opened.json").write_text(
        json.dumps({"round": 4, "sums": {COMMON.hex(): [{"clients": [0, 1, 2], "spoilt": False}]}})
    )
    opened = OpenedSums(tmp_path / "opened.json")
    opened.begin(4)
    assert opened.clients() == {0, 1, 2}


@pytest.mark.parametrize(
    "text", ["", "[]", '{"sums": {}}', '{"rounds": []}', '{"rounds": {"x": {}}}', '{"rounds": {"1": {"a": [1]}}}']
)
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "opened.json").write_text(text)
    with pytest.raises(StoreError, match="is damaged"):
        OpenedSums(tmp_path / "opened.json")
