import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from paceline.core.errors import StoreError, UnknownNameError
from paceline.store import RunFolder
from paceline.store.plots import _curve, _numbers, _spread, draw_compare, plot_compare, plot_run


def history(seconds: float, final: float, rounds: int = 6, **more: float) -> list[dict[str, Any]]:
    return [
        {
            "round": r,
            "virtual_seconds": seconds * r,
            "accuracy": final * r / rounds,
            "loss": 2.0 / r,
            "round_seconds": seconds,
            "bytes_up": 5_000_000,
            "bytes_down": 6_000_000,
            **more,
        }
        for r in range(1, rounds + 1)
    ]


def test_methods_are_compared_in_one_wide_picture(tmp_path: Path) -> None:
    parts = {"compute_seconds": 20.0, "upload_seconds": 10.0}
    runs = [
        {"method": m, "seed": s, "history": history(40.0 + 10 * i, 0.7 + 0.01 * s, **parts)}
        for i, m in enumerate(["none", "clip", "segments"])
        for s in range(3)
    ]
    path = plot_compare(tmp_path / "deep" / "compare.png", runs, title="Three methods", target=0.5)
    height, width = imread(path).shape[:2]
    assert width > 2000
    assert width > 2.5 * height


def test_few_points_and_unscored_rounds_are_drawn(tmp_path: Path) -> None:
    short = history(3.0, 0.5, rounds=1)
    unscored = [{k: v for k, v in r.items() if k not in ("accuracy", "loss")} for r in history(2.0, 0.5)]
    failed = [{**r, "accuracy": math.nan} for r in history(2.0, 0.5)]
    runs = [{"method": m, "seed": 0, "history": h} for m, h in [("a", short), ("b", unscored), ("c", failed)]]
    assert plot_compare(tmp_path / "c.svg", runs).stat().st_size > 1000
    assert plot_compare(tmp_path / "d.png", runs[1:2]).stat().st_size > 1000


def test_a_run_draws_itself(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "one")
    folder.write_config({"method": "fedavg", "task": "mnist-5k"})
    with pytest.raises(StoreError, match="no metrics yet"):
        plot_run(folder)
    for record in history(30.0, 0.9):
        folder.append_metrics(record)
    assert plot_run(folder.path) == folder.path / "plots" / "run.png"
    assert imread(folder.plots / "run.png").shape[1] > 2000


def test_nothing_and_strange_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing to plot"):
        plot_compare(tmp_path / "x.png", [{"method": "a", "seed": 0, "history": []}])
    with pytest.raises(StoreError, match="use png, svg or pdf"):
        plot_compare(tmp_path / "x.bmpx", [{"method": "a", "seed": 0, "history": history(1.0, 0.5)}])


def test_seeds_are_averaged_over_the_rounds_that_all_have() -> None:
    seconds, scores = _curve([history(10.0, 0.6, 6), history(20.0, 0.4, 4)])
    assert seconds.tolist() == [15.0, 30.0, 45.0, 60.0]
    assert scores.mean(0) == pytest.approx([10.0, 20.0, 30.0, 40.0])
    assert scores.shape == (2, 4)


def test_labels_are_spread_apart() -> None:
    places = _spread([70.0, 69.9, 10.0, 70.1], gap=5.0, low=0.0, high=72.0)
    assert places == [67.0, 62.0, 10.0, 72.0]


def drawn(**options: Any) -> tuple[Any, str]:
    """Return the figure of two methods, with two and three seeds, and all of its texts."""
    seeds = [("none", s) for s in range(2)] + [("clip", s) for s in range(3)]
    runs = [{"method": m, "seed": s, "history": history(40.0, 0.7 + 0.01 * s)} for m, s in seeds]
    figure = draw_compare(runs, "digits, iid, 4 clients", **options)
    figure.canvas.draw()
    return figure, "\n".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


def test_a_picture_says_what_its_bands_are_and_of_how_many_seeds() -> None:
    _, text = drawn()
    assert "line: mean of 2 to 3 seeds; band: lowest to highest seed" in text
    assert "digits, iid, 4 clients" in text
    one = draw_compare([{"method": "a", "seed": 0, "history": history(1.0, 0.5)}] * 2)  # the same seed twice
    assert "one seed" in one.axes[0].get_xlabel()


@pytest.mark.parametrize(
    ("x", "label", "last"), [("time", "virtual time (s)", 240.0), ("rounds", "rounds", 6.0), ("bytes", "by all clients (MB)", 66.0)]
)
def test_axes(x: str, label: str, last: float) -> None:
    figure, text = drawn(x=x)
    left = figure.axes[0]
    assert label in left.get_xlabel()
    assert left.get_xlim()[1] == pytest.approx(last)
    assert f"over {'virtual time' if x == 'time' else x}" in text
    with pytest.raises(UnknownNameError, match="did you mean time"):
        drawn(x="tme")


def test_no_two_parts_of_a_bar_look_alike() -> None:
    parts = {f"part{i}_seconds": 1.0 for i in range(9)}
    figure = draw_compare([{"method": "a", "seed": 0, "history": history(12.0, 0.5, **parts)}])
    bars = [c.patches[0] for c in figure.axes[1].containers]
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in bars}) == len(bars) == 10


def test_no_two_bars_of_different_length_have_one_label() -> None:
    assert _numbers([0.1021, 0.1239, 0.1021], "s") == ["0.102 s", "0.124 s", "0.102 s"]
    assert _numbers([0.1021, 0.1023, 0.5], "s") == ["0.1021 s", "0.1023 s", "0.5 s"]
    assert _numbers([5.52691, 5.52684], "s") == ["5.53 s", "5.53 s"]
    assert _numbers([12345.6, 2.0], "MB") == ["12300 MB", "2 MB"]
    assert _numbers([1.0, 1.0], "MB") == ["1 MB", "1 MB"]
