"""Runs in folders with odd names, from the server's configuration to the client's state."""

import json

import pytest

from paceline.store import RunFolder

RUN = {"clients": 2, "cohort": 2, "rounds": 1}


@pytest.mark.parametrize("name", ["my run (1) ü", "x" * 250, "."])
def test_a_run_in_a_folder_with_an_odd_name(loopback, name):
    place = loopback.root / "runs" / name
    place.mkdir(parents=True)  # as the database does, which comes first
    loopback.serve(RUN, {"run": place})
    for number in range(2):
        loopback.client(number)
    assert loopback.finish().rounds == 1
    assert RunFolder.open(place).read_summary()["rounds"] == 1
    (state,) = [path.name for path in (loopback.root / "state0").iterdir() if path.is_dir()]
    assert state == json.loads((place / "federation.json").read_text())["id"]


def test_a_run_that_got_an_id_no_client_takes_gets_another(loopback):
    place = loopback.root / "run"
    place.mkdir()
    (place / "federation.json").write_text(json.dumps({"id": "my run (1)-0123456789ab", "starts": 3}))
    loopback.serve(RUN)
    for number in range(2):
        loopback.client(number)
    assert loopback.finish().rounds == 1
    assert json.loads((place / "federation.json").read_text()) == {"id": "my-run-1--0123456789ab", "starts": 4}
