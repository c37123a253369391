"""Full disks: the run goes on or ends with the named error, nothing is lost, and it goes on with the same bits."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from pathlib import Path

import pytest

from paceline.core.errors import DiskFullError
from paceline.deploy.server.database import ServerState
from paceline.network.buffers import Budget, Buffer
from paceline.network.handshake import HIDDEN

RUN = {"method": "scaffold", "clients": 5, "cohort": 5, "rounds": 5}
SECURE = {"aggregation": "secure", "secure": {"threshold": 3, "gamma": 0.0}}


class Disk:
    """A small file system that can be filled up and cleared."""

    def __init__(self, place: Path) -> None:
        self.place, self.filler = place, place / "filler"

    def fill(self, left: int = 0) -> None:
        with contextlib.suppress(OSError), self.filler.open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        with self.filler.open("r+b") as file:
            file.truncate(max(self.filler.stat().st_size - left, 0))

    def clear(self) -> None:
        self.filler.unlink()


@pytest.fixture
def disk(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield Disk(place)
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("left", [0, *(pytest.param(n << 10, marks=pytest.mark.slow) for n in (4, 12, 24, 60, 200))])
def test_a_server_whose_disk_is_full_stops_and_goes_on_with_the_same_bits(loopback, federate, disk, left):
    run = {**RUN, **SECURE}

    def fill(record, total):
        if record["round"] == 2:
            disk.fill(left)

    options = {"run": disk.place / "run"}
    port = loopback.serve(run, options, observer=fill, state=ServerState(disk.place / "run" / "state.db"))
    for number in range(5):
        loopback.client(number)
    with pytest.raises(DiskFullError, match="no disk space"):
        loopback.result.result(20)
    disk.clear()
    loopback.serve(run, {**options, "listen": f"127.0.0.1:{port}"}, state=ServerState(disk.place / "run" / "state.db"))
    summary = loopback.finish()
    assert summary.model_sha256 == federate(vectorize="off", **run).model_sha256
    assert [r["round"] for r in summary.history] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("aggregation", ["plain", "secure"])
def test_a_client_whose_disk_is_full_drops_out_and_comes_back(loopback, federate, disk, aggregation):
    run = {**RUN, **(SECURE if aggregation == "secure" else {})}
    if aggregation == "secure":  # whose keys were prepared is lost in another exchange
        run["secure"] = SECURE["secure"] | {"pipelined": False}

    def watch(record, total):
        if record["round"] == 2:
            disk.fill()
        if record["round"] == 4:
            disk.clear()

    loopback.serve(run, observer=watch)
    for number in range(4):
        loopback.client(number)
    loopback.client(4, state=disk.place / "state")
    there = loopback.finish()
    step = "secagg.advertise" if aggregation == "secure" else "train"
    here = federate(drop=lambda round, client, function: client == 4 and round in (3, 4) and function == step, **run)
    assert there.model_sha256 == here.model_sha256
    assert [r["dropped"] for r in there.history] == [0, 0, 1, 1, 0]
    reported = loopback.server_lines.of("lost")
    assert [list(facts["clients"]) for facts in reported] == [[4], [4]]
    if aggregation == "secure":
        assert all(facts["clients"][4] == HIDDEN for facts in reported)
    logged = [facts["why"] for facts in loopback.client_lines.of("not_answered")]
    assert logged
    assert all("DiskFullError: no disk space" in why for why in logged)


def test_a_client_that_cannot_begin_for_want_of_room_joins_later(loopback, federate, disk, monkeypatch):
    monkeypatch.setattr("paceline.network.job_queue.AGAIN", 0.1)
    disk.fill()
    loopback.serve(RUN)
    for number in range(4):
        loopback.client(number)
    loopback.client(4, state=disk.place / "state")
    loopback.wait(lambda: loopback.server_lines.of("refused_by_client"))
    disk.clear()
    assert loopback.finish().model_sha256 == federate(vectorize="off", **RUN).model_sha256
    (reported,) = {(f["client"], f["later"]) for f in loopback.server_lines.of("refused_by_client")}
    assert reported == (4, True)
    assert "DiskFullError" in loopback.server_lines.of("refused_by_client")[0]["reasons"][0]


def test_replies_that_find_no_room_are_sent_again(loopback, federate, disk, monkeypatch):
    """Messages beyond `server.memory` go to files; with a full disk their streams end, and come back."""
    monkeypatch.setattr("paceline.network.buffers.SMALL", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(disk.place))
    disk.fill()
    loopback.serve(RUN, {"memory": 0})
    for number in range(5):
        loopback.client(number)
    loopback.wait(lambda: len(loopback.server_lines.of("disk")) >= 3)
    disk.clear()
    assert loopback.finish().model_sha256 == federate(vectorize="off", **RUN).model_sha256
    assert "cannot be stored" in loopback.server_lines.of("disk")[0]["why"]


def test_a_buffer_names_a_full_disk_and_gives_all_back(disk, monkeypatch):
    monkeypatch.setattr("paceline.network.buffers.SMALL", 0)
    disk.fill(left=8192)
    budget = Budget(0, str(disk.place))
    buffer = Buffer(100_000, budget)
    buffer.add(memoryview(bytes(8_000)))
    with pytest.raises(DiskFullError, match="cannot be stored"):
        buffer.add(memoryview(bytes(90_000)))
    buffer.close()
    short = Buffer(9_000, budget)  # what Python holds back comes to the disk at the end only
    disk.fill()
    with pytest.raises(DiskFullError, match="cannot be stored"):
        short.add(memoryview(bytes(9_000)))
    short.close()
    assert budget.used == 0
