"""Whatever a run is called, its folder and its id can be made, sent and taken."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from paceline.core.errors import WireError
from paceline.core.names import LONGEST, is_name, run_id, safe_name, safe_names
from paceline.network.handshake import Welcome

TEXTS = st.text() | st.text(alphabet="aü.- /(1)=é\u0301\ud800\0漢", min_size=60, max_size=300)
ODD = [
    "my run (1) ü",
    "x" * 250,
    "ü" * 250,
    "",
    ".",
    "..",
    "-",
    "a/b",
    "\0",
    "\ud800",
    "e\u0301" * 100,
    "漢" * 100,
    "a" + "." * 300 + "b",
]


def welcome(run: str) -> Welcome:
    head = {
        "run": run,
        "incarnation": 1,
        "number": 0,
        "round": 0,
        "take": 0,
        "saved": 0,
        "kept": 0,
        "plan": {},
        "heartbeat": 1.0,
    }
    return Welcome.read(head, b"")


@pytest.mark.parametrize("text", ODD)
def test_folders_of_odd_names_can_be_made(tmp_path, text):
    name = safe_name(text)
    (tmp_path / name / "inner").mkdir(parents=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / f".{name}.replaced").exists() is False  # and there is room for what lies beside it


@settings(max_examples=300)
@given(TEXTS, st.integers(20, LONGEST))
@example("a" * 49 + "." + "b" * 200, 60)
def test_names_are_valid_and_stay_as_they_are(text, most):
    name = safe_name(text, most)
    assert len(name.encode()) <= most
    assert is_name(name, most)
    assert safe_name(name, most) == name
    assert safe_name(text, most) == name


@settings(max_examples=300)
@given(TEXTS)
def test_every_run_gets_an_id_that_clients_take(text):
    one, other = run_id(text), run_id(text)
    assert one != other
    assert one.isascii()
    assert welcome(one).run == one


@given(st.lists(st.sampled_from(["a/b", "a b", "a-b", "x" * 130 + "1", "x" * 130 + "2", "c", "ü", "u\u0308"]), max_size=6))
def test_different_texts_get_different_names(texts):
    names = safe_names(texts)
    assert len(set(names)) == len(set(texts))
    assert all(is_name(name, 120) for name in names)


def test_names_that_were_good_before_stay():
    for name in ("clip-network=true-mnist-5k-s0", "compare-digits", "fedavg-digits-s0", "a.b_c+d"):
        assert safe_name(name) == name
        assert safe_names([name, name]) == [name, name]


@pytest.mark.parametrize("run", ["", ".", "../x", "a/b", "a b", "\0", "x" * 201, "ü" * 101, ".hidden", "a\n"])
def test_a_server_cannot_name_a_folder_that_is_none(run):
    with pytest.raises(WireError, match="not a valid run name"):
        welcome(run)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS)
def test_what_a_client_takes_can_be_a_folder(tmp_path, run):
    try:
        name = welcome(run).run
    except WireError:
        return
    assert not (tmp_path / name / "plan").exists()
