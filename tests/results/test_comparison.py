"""Methods and seeds side by side."""

import json
import statistics

import pytest
from matplotlib.figure import Figure

import paceline as pl
from paceline.results.groups import labels
from tests.conftest import make_task

FIELDS = {"clients": 4, "rounds": 2}


@pytest.fixture(scope="module")
def table():
    return pl.compare([pl.methods.FedAvg(), pl.methods.FedProx(mu=1.0)], make_task(), seeds=range(2), **FIELDS)


def test_rows_have_means_and_deviations(table):
    one = [pl.run("fedavg", make_task(), seed=seed, **FIELDS) for seed in range(2)]
    assert [(row["label"], row["seeds"]) for row in table.rows] == [("fedavg", 2), ("fedprox:mu=1.0", 2)]
    for name in ("accuracy", "loss", "total_seconds", "bytes_up"):
        values = [getattr(result, name) for result in one]
        assert table.mean(name)["fedavg"] == pytest.approx(statistics.fmean(values))
        assert table.deviation(name)["fedavg"] == pytest.approx(statistics.stdev(values))
    assert [result.model_sha256 for result in table.results[:2]] == [result.model_sha256 for result in one]
    assert [result.seed for result in table.results] == [0, 1, 0, 1]
    assert table.results[3].model()


def test_it_is_shown_as_a_table(table):
    text, html = repr(table), table._repr_html_()
    for shown in ("blobs, 4 clients", "fedprox:mu=1.0", "bytes up"):
        assert shown in text
        assert shown in html
    assert html.count("<tr>") == 3
    label = pl.Comparison([], "<b>")
    assert "&lt;b&gt;" in label._repr_html_()


def test_its_picture_is_returned_and_saved(table, tmp_path):
    figure = table.plot(tmp_path / "picture.svg")
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert "fedprox" in (tmp_path / "picture.svg").read_text()
    with pytest.raises(pl.errors.StoreError, match="cannot be saved as 'xyz'"):
        table.plot(tmp_path / "picture.xyz")


def test_one_seed_has_no_deviation():
    row = pl.compare(["fedavg"], make_task(), **FIELDS).rows[0]
    assert row["accuracy_deviation"] is None
    assert row["seeds"] == 1


def test_runs_are_kept(tmp_path):
    made = pl.compare(["fedavg", "clip"], make_task(), out=tmp_path, **FIELDS)
    names = json.loads((made.folder / "comparison.json").read_text())["runs"]
    assert names == ["fedavg-s0", "clip-s0"]
    loaded = [pl.load(made.folder / name, task=make_task()).model_sha256 for name in names]
    assert loaded == [result.model_sha256 for result in made.results]


def test_all_are_checked_before_the_first_is_trained(tmp_path):
    with pytest.raises(pl.errors.PlanError, match="fluid: ") as caught:
        pl.compare(["fedavg", "fluid"], make_task(), aggregation="secure", out=tmp_path, **FIELDS)
    assert len(caught.value.misfits) == 1
    assert list(tmp_path.iterdir()) == []


def test_data_are_read_once():
    class Counted:
        reads = 0

        def __len__(self):
            return 60

        def __getitem__(self, i):
            Counted.reads += 1
            return make_task().train.x[i], int(make_task().train.y[i])

    pl.compare(["fedavg", "clip"], (Counted(), Counted()), model=make_task().model, clients=3, rounds=1, seeds=(0, 1))
    assert Counted.reads == 120


def test_an_unknown_figure_is_named(table):
    for figures in (table.mean, table.deviation):
        with pytest.raises(pl.errors.UnknownNameError, match="unknown figure 'acc'; did you mean accuracy"):
            figures("acc")


@pytest.mark.parametrize(
    ("methods", "options", "words"),
    [
        ([], {}, "0 methods"),
        ("fedavg", {}, "must be a list"),
        (["fedavg"], {"seeds": []}, "0 seeds"),
        (["fedavg"], {"seed": 1}, "seeds="),
        (["fedavg", "fedavg"], {}, "duplicate .*: fedavg"),
        (["fedavg"], {"seeds": [0, 0]}, "duplicate"),
        (["fedavg"], {"cliens": 3}, "did you mean clients"),
    ],
)
def test_what_is_no_comparison_is_named(methods, options, words):
    with pytest.raises(pl.errors.ConfigError, match=words):
        pl.compare(methods, make_task(), **options)


def test_runs_that_differ_have_different_labels():
    both = [
        {"method": "a", "options": {"clip": 1}, "secure": {"clip": 3}},
        {"method": "a", "options": {"clip": 2}, "secure": {"clip": 3}},
        {"method": "a", "options": {"clip": 2}, "secure": {"clip": 4}},
        {"method": "a", "options": {}, "secure": {"clip": 4}},
        {"method": "a", "options": {"clip": "2"}, "secure": {"clip": 4}},
    ]
    found = labels(both)
    assert found[:4] == ["a:clip=1,secure.clip=3", "a:clip=2,secure.clip=3", "a:clip=2,secure.clip=4", "a:secure.clip=4"]
    assert len(set(found)) == 5
    assert labels([both[0], both[0]]) == ["a", "a"]  # two seeds of one run


def test_the_picture_names_task_and_partition(table):
    assert table.plot().get_suptitle() == "blobs, iid, 4 clients, 2 rounds"
