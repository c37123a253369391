import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from paceline.core.errors import StoreError
from paceline.store import RunFolder
from paceline.store.plots import _curve, _spread, plot_compare, plot_run


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
