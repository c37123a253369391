"""`paceline predict` and `paceline export`: tables, JSON, files, and messages for what is wrong."""

import csv
import json

import numpy as np
import pytest
import torch

from tests.results.test_predicting import people


@pytest.fixture
def trained(call, tmp_path):
    people(tmp_path / "people.csv")
    words = ("--task", "csv:people.csv?drop=id_x", "--clients", "3", "--rounds", "2")
    call("run", "fedper", *words, "--name", "own", "--evaluation", "clients")
    return call("run", "fedavg", *words, "--name", "one")


def test_a_table_a_file_and_json(call, trained, tmp_path):
    shown = call("predict", "runs/one", "people.csv")
    assert "the first 10 of 240 samples" in shown.stdout
    assert "accuracy on the classes in the file" in shown.stdout
    assert "unknown to the model, so unused: id_x" in shown.stderr
    saved = call("predict", "runs/one", "people.csv", "--out", "p.csv")
    assert "240 predictions: p.csv" in saved.stdout
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert list(rows[0]) == ["prediction", "score ill", "score well"]
    given = json.loads(call("predict", "runs/one", "people.csv", "--json").stdout)
    assert [row["prediction"] for row in given["predictions"]] == [row["prediction"] for row in rows]


def test_classes_in_the_file_that_are_missing_or_not_the_model_s(call, trained, tmp_path):
    lines = (tmp_path / "people.csv").read_text().splitlines()
    place = lines[0].split(",").index("outcome")

    def renamed(rename):
        cells = [line.split(",") for line in lines[1:]]
        changed = [[rename(i, cell) if k == place else cell for k, cell in enumerate(row)] for i, row in enumerate(cells)]
        (tmp_path / "new.csv").write_text("\n".join([lines[0], *(",".join(row) for row in changed)]))
        return call("predict", "runs/one", "new.csv")

    right = json.loads(call("predict", "runs/one", "people.csv", "--json").stdout)
    expected = np.mean(
        [row["prediction"] == line.split(",")[place] for row, line in zip(right["predictions"][4:], lines[5:], strict=True)]
    )
    shown = renamed(lambda i, cell: "NA" if i < 4 else cell)
    assert f"accuracy on the classes in the file: {100 * expected:.1f} %" in shown.stdout
    assert "4 rows without a class, which do not count for the accuracy" in shown.stderr
    shown = renamed(lambda i, cell: "krank")
    assert "accuracy" not in shown.stdout
    assert "240 rows with classes that the model does not have: 'krank' 240x" in shown.stderr
    assert "1 rows with classes that the model does not have" in renamed(lambda i, cell: cell if i else "krank").stderr


def test_columns_of_other_names_and_cells_of_another_form(call, trained, tmp_path):
    text = (tmp_path / "people.csv").read_text().replace("age", "alter", 1).replace(",,", ",N/A,")
    (tmp_path / "other.csv").write_text(text)
    assert "name it with --column OWN=NAME" in call("predict", "runs/one", "other.csv", code=5).stderr
    words = ("--column", "alter=age", "-o", "na=N/A", "--json")
    there = json.loads(call("predict", "runs/one", "other.csv", *words).stdout)
    assert there["predictions"] == json.loads(call("predict", "runs/one", "people.csv", "--json").stdout)["predictions"]
    assert "did you mean na" in call("predict", "runs/one", "other.csv", "-o", "nan=1", code=2).stderr
    assert "--column takes OWN=NAME" in call("predict", "runs/one", "other.csv", "--column", "alter", code=2).stderr


def test_a_client_s_own_model(call, trained):
    assert "name one: client=0" in call("predict", "runs/own", "people.csv", code=2).stderr
    first, second = (call("predict", "runs/own", "people.csv", "--client", str(k), "--json").stdout for k in range(2))
    assert json.loads(first)["predictions"] != json.loads(second)["predictions"]
    call("export", "runs/own", "--to", "state-dict", "--client", "1")
    assert "client 9 does not exist" in call("predict", "runs/own", "people.csv", "--client", "9", code=2).stderr


def test_exports(call, trained, tmp_path):
    assert call("export", "runs/one", "--to", "torch-export").stdout.strip() == "runs/one/model.pt2"
    made = json.loads(call("export", "runs/one", "--to", "state-dict", "--out", "m.pt", "--json").stdout)
    assert made == {"file": "m.pt", "to": "state-dict"}
    assert (tmp_path / "m.pt").exists()
    assert "did you mean onnx" in call("export", "runs/one", "--to", "onxx", code=2).stderr
    assert "has no model.json" in call("export", "runs", "--to", "onnx", code=13).stderr


def test_an_exported_regression_is_in_the_unit_of_the_target(call, tmp_path):
    stream = np.random.default_rng(0)
    size = stream.normal(100, 20, 120).round(1)
    lines = [f"{one},{3000 * one + 50_000:.0f}" for one in size]
    (tmp_path / "homes.csv").write_text("\n".join(["size,price", *lines]) + "\n")
    call("run", "fedavg", "--task", "csv:homes.csv?target=price", "--clients", "3", "--rounds", "2", "--name", "homes")
    assert call("export", "runs/homes", "--to", "torch-export").stderr == ""
    column = json.loads((tmp_path / "runs/homes/model.json").read_text())["data_schema"]["columns"][0]
    x = (torch.tensor([[80.0], [120.0]]) - column["mean"]) / column["deviation"]
    found = torch.export.load(tmp_path / "runs/homes/model.pt2").module()(x)
    (tmp_path / "new.csv").write_text("size\n80\n120\n")
    rows = json.loads(call("predict", "runs/homes", "new.csv", "--json").stdout)["predictions"]
    assert found[:, 0].tolist() == pytest.approx([row["prediction"] for row in rows], rel=1e-6)
    for words in (("--to", "state-dict"), ("--to", "torch-export", "--raw")):
        assert "its numbers are standardised: multiply by" in call("export", "runs/homes", *words).stderr
    made = json.loads(call("export", "runs/homes", "--to", "state-dict", "--json").stdout)
    assert made["scaling"] == json.loads((tmp_path / "runs/homes/model.json").read_text())["scaling"]
