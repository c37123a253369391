"""A saved run is a usable model: its weights load strictly, and it predicts what the run measured, from raw data."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pandas
import pytest
import torch
from torch import nn

import paceline as pl
from paceline.core.errors import ConfigError, DataFormatError, LayoutError, SchemaError, StoreError
from paceline.results.predictor import load_predictor
from paceline.results.recipe import find, made
from paceline.tasks import load_task
from tests.conftest import make_task

FIELDS = {"clients": 4, "rounds": 2}


def people(path, rows=240, seed=1):
    """Write a table with a missing value, a category, and classes that its columns tell."""
    stream = np.random.default_rng(seed)
    lines = ["id_x,age,dose,sex,when,outcome"]
    for i in range(rows):
        age, sex = stream.integers(20, 90), stream.choice(["f", "m"])
        dose = "" if i % 9 == 0 else f"{stream.normal(5, 2):.2f}"
        sick = "ill" if age + (10 if sex == "m" else 0) + stream.normal(0, 5) > 60 else "well"
        lines.append(f"{'abc'[i % 3]},{age},{dose},{sex},2021-0{1 + i % 9}-11,{sick}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def tabular(tmp_path_factory):
    root = tmp_path_factory.mktemp("tabular")
    file = people(root / "people.csv")
    result = pl.run("fedavg", f"csv:{file}?drop=id_x", folder=root / "run", clients=4, rounds=6)
    return root, file, result


def held_out(file, task):
    """Write the raw rows of the run's test part as a file of its own, with columns in another order."""
    from paceline.data.raw import hold_out

    frame = pandas.read_csv(file, dtype=str, keep_default_na=False)
    codes = np.array([task.classes.index(name) for name in frame["outcome"]])
    raw = frame.iloc[hold_out(codes, 0.2)[1]]
    raw[["when", "sex", "id_x", "outcome", "dose", "age"]].to_csv(file.with_name("raw.csv"), index=False)
    return file.with_name("raw.csv")


def test_raw_rows_reach_the_accuracy_of_the_run_without_the_training_code(tabular):
    root, file, result = tabular
    raw = held_out(file, load_task(f"csv:{file}?drop=id_x"))
    program = (
        "import sys; from paceline.cli import main; sys.argv[1:] = sys.argv[1:]\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "bad = [m for m in sys.modules if m.startswith(('paceline.methods', 'paceline.engines', 'paceline.runner', 'paceline.run.'))]\n"
        "print(bad, file=sys.stderr); sys.exit(code or bool(bad))"
    )
    words = ["predict", str(root / "run"), str(raw), "--out", str(root / "out.csv"), "--json"]
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accuracy"] == pytest.approx(result.accuracy)
    assert "unknown to the model, so unused: id_x" in done.stderr
    rows = list(csv.DictReader((root / "out.csv").read_text().splitlines()))
    truth = [row["outcome"] for row in csv.DictReader(raw.read_text().splitlines())]
    assert np.mean([row["prediction"] == name for row, name in zip(rows, truth, strict=True)]) == pytest.approx(result.accuracy)
    assert all(float(row["score ill"]) + float(row["score well"]) == pytest.approx(1, abs=1e-5) for row in rows)


def test_rows_frames_and_columns_are_read_alike(tabular):
    root, file, result = tabular
    loaded = pl.load(root / "run")
    frame = pandas.read_csv(file).drop(columns=["outcome"])
    whole = loaded.predict(file)
    assert loaded.predict(frame).outputs.equal(whole.outputs)
    assert loaded.predict(frame.to_dict("list")).outputs.equal(whole.outputs)
    rows = [row for _, row in frame.iterrows()]
    assert torch.allclose(loaded.predict([dict(row) for row in rows[:9]]).outputs, whole.outputs[:9], atol=1e-6)
    one = loaded.predict({"age": 44, "dose": None, "sex": "f", "when": "2021-03-11"})
    assert len(one) == 1
    assert one.labels[0] in ("ill", "well")
    assert result.predict(frame).outputs.equal(whole.outputs)
    assert whole.accuracy is not None
    assert loaded.predict(frame).accuracy is None


def test_missing_and_renamed_columns_are_named(tabular):
    root, file, _ = tabular
    frame = pandas.read_csv(file).rename(columns={"age": "alter"}).drop(columns=["sex"])
    with pytest.raises(SchemaError) as caught:
        pl.load(root / "run").predict(frame)
    assert "column 'age' (number) is missing; this file also has 'id_x', 'alter': name it with columns=" in str(caught.value)
    assert "column 'sex' (category) is missing" in str(caught.value)
    own = pandas.read_csv(file).rename(columns={"age": "alter"})
    made = pl.load(root / "run").predict(own, columns={"alter": "age"})
    assert made.outputs.equal(pl.load(root / "run").predict(file).outputs)
    unknown = pl.load(root / "run").predict({"age": 44, "dose": 2.0, "sex": "x", "when": "2021-03-11"})
    assert any("categories that the schema does not have: 'x'" in note for note in unknown.notes)


def test_the_state_dict_loads_strictly(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.second = nn.Linear(12, 12), nn.BatchNorm1d(12), nn.Linear(12, 12)
            self.second.weight, self.head = self.first.weight, nn.Linear(12, 4)
            self.head.weight.requires_grad_(False)
            self.register_buffer("steps", torch.tensor(7))

        def forward(self, x):
            return self.head(self.second(self.norm(self.first(x)).relu()))

    task = make_task(model=Tied)
    result = pl.run("fedavg", task, folder=tmp_path / "run", **FIELDS)
    from safetensors.torch import load_file

    fresh = Tied()
    fresh.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"), strict=True)
    right = fresh.eval()(task.test.x).argmax(1).eq(task.test.y).float().mean()
    assert float(right) == pytest.approx(result.accuracy)
    with pytest.raises(ConfigError, match=r"defined in a script or inside a function.*model="):
        load_predictor(tmp_path / "run")
    loaded = pl.load(tmp_path / "run", model=Tied)
    assert loaded.predict(task.test.x).codes.eq(task.test.y).float().mean() == right
    assert pl.load(tmp_path / "run", task=task).predict(task.test.x).outputs.equal(loaded.predict(task.test.x).outputs)
    with pytest.raises(LayoutError, match="does not match the model"):
        pl.load(tmp_path / "run", model=partial(nn.Linear, 12, 4)).model()


def test_a_run_of_an_earlier_version_still_loads(tmp_path):
    from safetensors.torch import load_file, save_file

    task = replace(make_task(), trainable=["4.*"])
    result = pl.run("fedavg", task, folder=tmp_path / "run", seed=3, **FIELDS)
    tensors = load_file(tmp_path / "run" / "model.safetensors")
    save_file({name: tensors[name] for name in ("4.weight", "4.bias")}, tmp_path / "run" / "model.safetensors")
    (tmp_path / "run" / "model.json").unlink()
    loaded = pl.load(tmp_path / "run", task=task)
    assert loaded.predict(task.test.x).codes.eq(task.test.y).double().mean() == pytest.approx(result.accuracy)
    assert loaded.params.sha256() == result.model_sha256


@pytest.mark.parametrize("method", ["finetuned", "fedper", "localonly"])
def test_clients_models_predict_what_was_measured(tmp_path, method):
    task = make_task()
    fields = FIELDS | {"evaluation": "clients", "client_test": 0.3, "partition": "dirichlet:0.5"}
    result = pl.run(method, task, folder=tmp_path / "run", **fields)
    run = pl.prepare(result.config, task=task)
    data = [task.train.subset(run.fed.engine.setup.split(client)[1]) for client in range(4)]
    run.close()
    loaded = pl.load(tmp_path / "run", task=task)
    hits = sum(int(loaded.predict(d.x, client=i).codes.eq(d.y).sum()) for i, d in enumerate(data))
    assert hits / sum(map(len, data)) == pytest.approx(result.accuracy)
    if method != "finetuned":
        with pytest.raises(ConfigError, match="has no global model; each client has its own"):
            load_predictor(tmp_path / "run")


def test_pictures_are_scaled_as_in_training():
    task = load_task("digits")
    result = pl.run("fedavg", "digits", **FIELDS)
    right = result.predict(task.test.x).codes.eq(task.test.y).double().mean()
    assert float(right) == pytest.approx(result.accuracy)
    from paceline.data.sources import find_source

    raw = find_source("digits").load().test
    assert torch.allclose(result.predict(raw.x).outputs, result.predict(task.test.x).outputs, atol=1e-5)
    with pytest.raises(SchemaError, match="pictures of 8x8 pixels, grey"):
        result.predict(np.zeros((2, 9, 9), dtype=np.uint8))
    with pytest.raises(DataFormatError, match=r"does not take samples of float32 and shape \[1, 9, 9\], but of float32 and shape"):
        result.predict(torch.zeros(2, 1, 9, 9))


def test_folders_of_pictures_and_of_texts(tmp_path):
    from PIL import Image

    stream = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (tmp_path / "pics" / name).mkdir(parents=True)
        (tmp_path / "texts" / name).mkdir(parents=True)
        for i in range(30):
            pixels = (level + stream.integers(-40, 40, (16, 16, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pics" / name / f"{i}.png")
    result = pl.run("fedavg", f"imagefolder:{tmp_path / 'pics'}?size=16", clients=2, rounds=3)
    made = result.predict(tmp_path / "pics")
    assert np.mean([name.partition("/")[0] == label for name, label in zip(made.names, made.labels, strict=True)]) > 0.9
    assert next(made.rows())["sample"] == "dark/0.png"
    one = result.predict(str(tmp_path / "pics" / "light" / "3.png"))
    assert one.outputs.equal(result.predict([tmp_path / "pics" / "light" / "3.png"]).outputs)


def test_texts_without_content_are_refused_and_those_without_known_words_told(tmp_path):
    for name in ("good", "bad"):
        (tmp_path / "texts" / name).mkdir(parents=True)
        for i in range(10):
            (tmp_path / "texts" / name / f"{i}.txt").write_text(f"{name} news")
    result = pl.run("fedavg", f"textfolder:{tmp_path / 'texts'}?words=5", clients=2, rounds=1, progress=False)
    assert result.predict(["good news", "unheard of"]).notes == ("1 texts consist of words that the vocabulary does not have",)
    assert result.predict(["good news"]).notes == ()
    (tmp_path / "empty.txt").write_text(" ")
    with pytest.raises(DataFormatError, match=r"empty.txt: the text is empty"):
        result.predict(tmp_path / "empty.txt")


class Pair(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.a, self.b = nn.Linear(3, width), nn.Linear(2, width)

    def forward(self, first, second):
        return {"logits": self.a(first) + self.b(second), "hidden": first}


def test_several_inputs_and_numbers(tmp_path):
    first, second, y = torch.randn(60, 3), torch.randn(60, 2), torch.arange(60) % 4
    made = pl.Task.from_tensors({"first": first, "second": second}, y, model=Pair)
    result = pl.run("fedavg", made, folder=tmp_path / "pair", **FIELDS)
    again = load_predictor(tmp_path / "pair")
    assert type(again.module) is Pair
    x = made.test.x
    assert again.predict(x).codes.eq(made.test.y).double().mean() == pytest.approx(result.accuracy)
    numbers = pl.Task.from_tensors(first, first.sum(1, keepdim=True), model=partial(nn.Linear, 3, 1), loss="mse")
    result = pl.run("fedavg", numbers, folder=tmp_path / "numbers", **FIELDS)
    found = load_predictor(tmp_path / "numbers").predict(numbers.test.x)
    assert float((found.numbers[:, None] - numbers.test.y).square().mean()) == pytest.approx(result.loss, rel=1e-5)
    assert next(found.rows()).keys() == {"prediction"}
    with pytest.raises(ConfigError, match="predicts numbers"):
        _ = found.labels


@pytest.mark.parametrize(
    "name", ["os:system", "subprocess:run", "torch:load", "pandas:read_pickle", "paceline.store.files:atomic_write"]
)
def test_a_description_calls_nothing_but_makers_of_models(name):
    with pytest.raises(ConfigError, match=r"which (is no code of a model|makes no model)"):
        find(name)


@pytest.mark.parametrize("call", [{"make": None}, None])
def test_a_name_among_the_arguments_is_checked_too(tmp_path, call):
    inner = {"call": "paceline.models.build:build", "arguments": ["os:system"], "options": {"command": f"touch {tmp_path}/x"}}
    outer = inner if call is None else {"call": "paceline.tasks.scaling:_scaled", "arguments": [{"make": inner}, {"tuple": [3]}]}
    with pytest.raises(ConfigError, match="which is no code of a model"):
        made(outer)
    assert not (tmp_path / "x").exists()


def test_damaged_and_foreign_folders_are_named(tmp_path, tabular):
    with pytest.raises(StoreError, match=r"has no model\.json"):
        load_predictor(tmp_path)
    (tmp_path / "model.json").write_text('{"version": 1}')
    with pytest.raises(StoreError, match=r"model\.json cannot be read"):
        load_predictor(tmp_path)
