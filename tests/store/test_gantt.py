from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_hex

from paceline.core.engine import Receipt
from paceline.core.errors import StoreError
from paceline.devices import VirtualClock
from paceline.store import RunFolder
from paceline.store.gantt import draw_rounds

MASKED = {"name": "masked", "start": 1.0, "seconds": 9.0, "clients": {"0": [3.0, 1.0], "1": [6.0, 5.0]}, "out": [2]}
ROUND: list[dict[str, Any]] = [{"name": "advertise", "start": 0.0, "seconds": 1.0, "clients": {"0": [0.0, 1.0]}, "out": []}, MASKED]


def bars(ax: Any, colour: str) -> list[tuple[float, float, float]]:
    """Return (row, start, seconds) of the bars of a colour."""
    found = [p for p in ax.patches if to_hex(p.get_facecolor()) == colour.lower() and p.get_width() > 0]
    return [(round(p.get_y() + p.get_height() / 2, 6), round(p.get_x(), 6), round(p.get_width(), 6)) for p in found]


def test_who_computes_sends_and_waits_and_in_which_phase() -> None:
    figure = draw_rounds({"clip": ROUND}, "One round")
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ["phase", "1", "0", "2"]  # the slowest first
    assert bars(ax, "#4C78A8") == [(1.0, 1.0, 3.0), (0.0, 1.0, 6.0)]
    assert bars(ax, "#F2A65A") == [(1.0, 0.0, 1.0), (1.0, 4.0, 1.0), (0.0, 7.0, 3.0)]  # what is after the deadline is not drawn
    assert bars(ax, "#E4E4E4") == [(1.0, 0.0, 1.0), (1.0, 1.0, 9.0), (0.0, 1.0, 9.0)]
    assert bars(ax, "#56B4E9") == [(-1.7, 1.0, 9.0)]
    figure.canvas.draw()
    texts = [t.get_text() for t in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    assert {"One round", "clip: 10 s", "sits out", "computes", "waits", "phase: keys", "phase: training, masked reply"} <= {*texts}
    assert "phase: opening the sum" not in texts


def test_rounds_of_several_methods_have_one_scale_and_unknown_phases_a_colour() -> None:
    other = [{**MASKED, "name": name, "start": i * 9.0} for i, name in enumerate(("walk", "look_around"))]
    figure = draw_rounds({"clip": ROUND, "mine": other, "none": []})
    assert [ax.get_title(loc="left").split(":")[0] for ax in figure.axes] == ["clip", "mine"]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim() == pytest.approx((0, 18.18))
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    assert names[-2:] == ["phase: walk", "phase: look around"]
    colours = [to_hex(p.get_facecolor()) for p in figure.legends[0].get_patches()]
    assert len(set(colours)) == len(colours)


def test_of_many_clients_the_slowest_are_drawn() -> None:
    many = [{"name": "train", "start": 0.0, "seconds": 60.0, "clients": {str(c): [float(c), 0.0] for c in range(60)}, "out": []}]
    labels = [t.get_text() for t in draw_rounds({"a": many}).axes[0].get_yticklabels()]
    assert labels[1:] == [str(c) for c in range(59, 19, -1)]


def test_nothing_to_draw_is_refused() -> None:
    with pytest.raises(StoreError, match="nothing to draw"):
        draw_rounds({"a": []})


def test_a_clock_keeps_what_clients_did_since_a_time() -> None:
    clock = VirtualClock()
    clock.advance("train", [Receipt(0, compute=2.0, network=1.0), Receipt(3, dropped="gone")])
    clock.advance("report", [Receipt(0, compute=0.0, network=0.5), Receipt(1, dropped="declined")])
    late = [Receipt(0, compute=9.0, dropped="late"), Receipt(1, dropped="declined"), Receipt(2, compute=1.0)]
    clock.advance("train", late, deadline=4.0)
    assert clock.now == 7.5  # who sits out is not waited for
    assert clock.since(3.0) == [
        {"name": "report", "start": 0.0, "seconds": 0.5, "clients": {"0": [0.0, 0.5]}, "out": [1]},
        {"name": "train", "start": 0.5, "seconds": 4.0, "clients": {"0": [9.0, 0.0], "2": [1.0, 0.0]}, "out": [1]},
    ]
    assert len(clock.since(0.0)) == 3
    clock.advance("train", [Receipt(c, compute=1.0) for c in range(201)])
    assert len(clock.since(0.0)) == 3  # too many to draw


def test_a_run_leaves_the_timeline_of_its_last_round(federate: Any, config: Any, task: Any, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "run")
    assert folder.read_timeline() == []
    result = federate(folder=folder, rounds=3, fleet="stragglers:compute=1e5", evaluation="federated")
    phases = folder.read_timeline()
    assert [phase["name"] for phase in phases] == ["train", "evaluate"]
    assert phases[0]["start"] == pytest.approx(0.0)
    assert phases[0]["seconds"] == pytest.approx(result.history[-1]["round_seconds"])
    assert len(phases[0]["clients"]) == 5
    folder.write_timeline([])  # resumed after its end: there is nothing new
    assert folder.read_timeline() == phases
    (folder.path / "timeline.json").write_text("{")
    with pytest.raises(StoreError, match="timeline"):
        folder.read_timeline()
