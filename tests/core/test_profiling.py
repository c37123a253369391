"""Time by section: nested sections count once, and a GPU's time is that between its own events."""

import time

import pytest

from paceline.core.profiling import GPU, Spent
from tests.pretend import PretendCuda


class Clock:
    """A GPU that is done with a section's work at a later time than the host."""

    def __init__(self):
        self.now, self.events = 0.0, 0

    def event(self, enable_timing=False):
        assert enable_timing
        clock = self

        class Event:
            def record(self, stream=None):
                clock.events += 1
                self.at = clock.now

            def synchronize(self):
                return None

            def elapsed_time(self, other):
                return 1e3 * (other.at - self.at)

        return Event()


@pytest.fixture
def clock(monkeypatch):
    with PretendCuda():
        clock = Clock()
        monkeypatch.setattr("torch.cuda.Event", clock.event)
        yield clock


def test_the_time_of_a_gpu_by_section_without_that_of_nested_ones(clock):
    profile = Spent()
    profile.watch("cuda")
    with profile.on("outer"):
        clock.now += 1.0
        with profile.on("inner"):
            clock.now += 10.0
        clock.now += 100.0
    clock.now += 1000.0  # outside of all sections
    with profile.on("inner"):
        clock.now += 0.5
    taken = profile.take()
    assert taken[GPU + "outer"] == pytest.approx(101.0)
    assert taken[GPU + "inner"] == pytest.approx(10.5)
    assert {"outer", "inner"} < taken.keys()
    assert profile.take() == {}


def test_intervals_are_read_before_they_are_many(clock, monkeypatch):
    monkeypatch.setattr("paceline.core.profiling._PENDING", 10)
    profile = Spent()
    profile.watch("cuda:0")
    for _ in range(35):
        with profile.on("step"):
            clock.now += 1.0
    assert len(profile._intervals) < 10
    assert profile.take()[GPU + "step"] == pytest.approx(35.0)


def test_no_event_becomes_a_part_of_a_captured_graph(clock, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_current_stream_capturing", lambda: True)
    profile = Spent()
    profile.watch("cuda")
    with profile.on("step"):
        clock.now += 1.0
    assert clock.events == 0


def test_other_devices_have_wall_time_only():
    profile = Spent()
    profile.watch("cpu")
    with profile.on("outer"), profile.on("inner"):
        time.sleep(0.01)
    taken = profile.take()
    assert set(taken) == {"outer", "inner"}
    assert taken["inner"] >= 0.01 > taken["outer"]
