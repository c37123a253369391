"""Files of every kind of target train: numbers, masks, classes of texts, and texts to be continued."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import paceline as pl
from paceline.core.errors import ConfigError, DataFormatError
from paceline.data.textfiles import read_text_files
from paceline.data.textfolder import read_text_folder
from paceline.results.predictor import load_predictor
from paceline.tasks import load_task, schema_of


class Mean(nn.Module):
    """A model of a user's own, which takes the shape and the number of outputs."""

    def __init__(self, shape, num_classes) -> None:
        super().__init__()
        self.out = nn.Linear(shape[0], num_classes)

    def forward(self, x):
        return self.out(x)


@pytest.fixture(scope="module")
def houses(tmp_path_factory):
    """A table whose target is a number far from 0: 1000 + 200 rooms + 50 if red."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("houses") / "houses.csv"
    rows = ["site,rooms,colour,price"]
    for _ in range(300):
        rooms, colour = rng.integers(1, 7), rng.choice(["red", "blue", ""])
        rows.append(
            f"{rng.choice(list('abc'))},{rooms},{colour},{1000 + 200 * rooms + 50 * (colour == 'red') + rng.normal() * 5:.2f}"
        )
    path.write_text("\n".join(rows))
    return f"csv:{path}"


@pytest.fixture(scope="module")
def masks(tmp_path_factory):
    """Pictures of a bright square, with its mask; the border does not count."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("squares")
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for number in range(40):
        picture, mask = rng.integers(0, 60, (16, 16)), np.zeros((16, 16))
        top, left = rng.integers(2, 8, 2)
        picture[top : top + 6, left : left + 6] += 120
        mask[top : top + 6, left : left + 6] = 1
        mask[:2] = 255
        for folder, values in (("images", picture), ("masks", mask)):
            Image.fromarray(values.astype(np.uint8)).save(root / folder / f"{number:02}.png")
    return f"maskfolder:{root}"


@pytest.fixture(scope="module")
def mails(tmp_path_factory):
    """Texts of two classes, each with words of its own."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("mails")
    for name, word in (("offer", "zz jazz buzz"), ("news", "quick quick query")):
        (root / name).mkdir()
        for number in range(40):
            words = [*rng.choice(["the", "moon", "is", "far", "a", "blue", "house"], 5), word]
            (root / name / f"{number}.txt").write_text(" ".join(rng.permutation(words)))
    return f"textfolder:{root}"


@pytest.fixture(scope="module")
def books(tmp_path_factory):
    root = tmp_path_factory.mktemp("books")
    (root / "one.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    (root / "two").mkdir()
    for name in ("a.txt", "b.md"):
        (root / "two" / name).write_text("äpfel und birnen, birnen und äpfel. " * 40)
    (root / "short.txt").write_text("too short")
    return root


def trained(task, partition="iid", **changes):
    clients = changes.pop("clients", 3)
    return pl.run("fedavg", task=task, partition=partition, clients=clients, vectorize="off", **{"rounds": 4, **changes})


def test_words_have_the_codes_of_the_schema_at_every_site(mails, tmp_path):
    task = load_task(mails, words=12, length=6)
    form = schema_of(task).text
    assert (form.length, form.symbols, len(form.words), form.words[0]) == (6, 12, 11, "quick")
    assert task.train.x.max() == 11
    path = tmp_path / "schema.json"
    path.write_text(schema_of(task).to_json())
    site = tmp_path / "site"
    for name in ("news", "offer"):
        (site / name).mkdir(parents=True)
        for number in range(6):
            (site / name / f"{number}.txt").write_text(f"Moon, moon {'query' if name == 'news' else 'jazz'}; unheard zebra zebra")
    own = load_task(f"textfolder:{site}?words=12")
    assert schema_of(own).text.words[0] != form.words[0]
    shared = load_task(f"textfolder:{site}", schema=str(path))
    assert schema_of(shared) == schema_of(task)
    moon, query = (form.words.index(word) + 1 for word in ("moon", "query"))
    assert shared.train.x[0].tolist() == [moon, moon, query, 0, 0, 0]
    with pytest.raises(ConfigError, match="words=2 must be from 3 to 30000, or 0 for bytes"):
        load_task(mails, words=2)


def test_a_vocabulary_is_of_the_training_texts_alone(tmp_path):
    for number in range(20):
        for name in "ab":
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{number}.txt").write_text(f"{name} only{name}{'xyz'[number % 3]}{number}")
    found = read_text_folder(tmp_path, words=400)
    assert len(found.schema.text.words) == 2 + len(found.train)
    assert (found.train.x > 0).sum(1).tolist() == [2] * len(found.train)
    assert (found.test.x > 0).sum(1).tolist() == [1] * len(found.test)


@pytest.mark.parametrize("model", ["text_encoder", "word_bag"])
def test_models_of_words_predict_raw_texts(mails, tmp_path, model):
    folder = tmp_path / "run"
    result = trained(mails, model=model, task_options={"words": 40, "length": 8}, rounds=8, folder=folder)
    assert result.accuracy > 0.9
    made = load_predictor(folder).predict(["QUICK query!", "zz? The jazz", "unheard"])
    assert made.labels[:2] == ["news", "offer"]
    whole = load_predictor(folder).predict(Path(mails.partition(":")[2]))
    right = [name.split("/")[0] == label for name, label in zip(whole.names, whole.labels, strict=True)]
    assert sum(right) / len(right) > 0.9


def test_a_number_is_learnt_standardised_and_judged_in_its_own_unit(houses):
    task = load_task(houses, target="price", client="site")
    assert task.num_classes == 0
    assert abs(float(task.train.y.mean())) < 0.2
    assert float(task.train.y.std()) == pytest.approx(1, abs=0.2)
    result = trained(houses, "natural", task_options={"target": "price", "client": "site"}, rounds=8)
    found = result.history[-1]
    assert found["metric"] == "r2"
    assert found["r2"] > 0.97
    target = schema_of(task).target
    with torch.no_grad():
        predicted = result.model()(task.test.x).squeeze(1) * target.deviation + target.mean
    true = task.test.y * target.deviation + target.mean
    assert float(true.min()) > 1100
    assert found["rmse"] == pytest.approx(float((predicted - true).square().mean().sqrt()), rel=1e-4)
    assert found["mae"] == pytest.approx(float((predicted - true).abs().mean()), rel=1e-4)
    assert found["loss"] == pytest.approx(found["mse"] / target.deviation**2, rel=1e-4)


def test_federated_and_secure_evaluation_give_the_same_unit(houses):
    options = {"task_options": {"target": "price", "client": "site"}, "rounds": 2, "partition": "natural", "client_test": 0.2}
    plain = trained(houses, evaluation="federated", **options).history[-1]
    secure = trained(houses, evaluation="federated", aggregation="secure-arithmetic", **options).history[-1]
    assert plain["rmse"] > 5
    assert secure["rmse"] == pytest.approx(plain["rmse"], rel=2e-2)


def test_a_schema_of_another_sample_scales_the_targets(houses, tmp_path):
    whole = load_task(houses, target="price", client="site")
    path = tmp_path / "schema.json"
    path.write_text(schema_of(whole).to_json())
    lines = Path(houses.removeprefix("csv:")).read_text().splitlines()
    (tmp_path / "few.csv").write_text("\n".join(lines[:1] + [line for line in lines[1:] if line.split(",")[1] in "56"]))
    few = load_task(f"csv:{tmp_path / 'few.csv'}", client="site", schema=str(path))
    assert few.target_scaling == whole.target_scaling
    assert float(few.train.y.mean()) > 1


def test_masks_are_learnt_by_pixel_without_those_that_do_not_count(masks):
    task = load_task(masks, size=16, grey=True)
    assert (task.num_classes, task.ignore_index, task.train.y.dtype) == (2, 255, torch.int64)
    assert task.info["model"] == "unet"
    result = trained(masks, task_options={"size": 16, "grey": True}, rounds=6)
    found = result.history[-1]
    assert found["metric"] == "dice"
    assert found["dice"] > 0.9
    with torch.no_grad():
        predicted = result.model()(task.test.x).argmax(1)
    counts = task.test.y != 255
    assert int(counts.sum()) < counts.numel()
    assert found["accuracy"] == pytest.approx(float((predicted == task.test.y)[counts].double().mean()), abs=1e-6)


def test_classes_of_texts_are_learnt(mails):
    task = load_task(mails, length=48)
    assert (task.num_classes, task.info["model"]) == (2, "text_encoder")
    for model in ("text_encoder", "word_bag", "lstm"):
        assert load_task(mails, model=model, length=48).build(0)(task.train.x[:2]).shape == (2, 2)
    assert trained(mails, task_options={"length": 48}, rounds=12).accuracy > 0.95


def test_texts_are_continued_by_client(books):
    raw = read_text_files(books, length=32)
    assert raw.owners == ("one", "two")
    assert np.array_equal(raw.train.x[:, 1:], raw.train.y[:, :-1])  # the target is the next byte
    assert bytes(raw.train.x[0]).decode() == "the quick brown fox jumps over t"
    assert bytes(raw.train.x[1]).decode().startswith("he lazy dog")
    assert "left out 1 texts" in raw.notes[-1]
    task = load_task(f"textfiles:{books}", length=32)
    assert (task.num_classes, task.info["model"], task.in_time) == (256, "char_model", True)
    result = trained(f"textfiles:{books}", "natural", clients=2, task_options={"length": 32}, rounds=8)
    perplexity = [record["perplexity"] for record in result.history]
    assert perplexity[-1] < 12 < perplexity[0]
    with pytest.raises(DataFormatError, match="no text has two windows"):
        read_text_files(books, length=5000)
    assert read_text_files(books / "one.txt", length=32).owners == ("one",)


@pytest.mark.parametrize(
    ("files", "model", "named"),
    [
        ("masks", "cnn", "samples are images and need a score of each pixel; .*unet"),
        ("mails", "mlp", "samples are texts and need one row of scores; .*lstm or word_bag or text_encoder"),
        ("mails", "char_model", "text_encoder"),
        ("houses", "cnn", "samples are tables.*logistic or mlp"),
        ("houses", "gru", "samples are tables"),
    ],
)
def test_a_model_that_does_not_fit_is_answered_with_those_that_do(files, model, named, request):
    with pytest.raises(ConfigError, match=named):
        load_task(request.getfixturevalue(files), model=model)


def test_a_model_of_ones_own_has_as_many_outputs_as_the_targets_need(houses):
    name = f"{Mean.__module__}:Mean"
    assert load_task(houses, model=name, target="price").build(0).out.out_features == 1
    assert load_task(houses, model=name, target="site").build(0).out.out_features == 3


def test_a_saved_model_predicts_numbers_masks_and_classes(houses, masks, mails, tmp_path):
    price = {"target": "price", "client": "site"}
    trained(houses, "natural", task_options=price, rounds=8, folder=tmp_path / "houses")
    path = Path(houses.removeprefix("csv:"))
    true = [float(line.rsplit(",", 1)[1]) for line in path.read_text().splitlines()[1:]]
    found = load_predictor(tmp_path / "houses").predict(str(path)).numbers
    assert float((found - torch.tensor(true)).abs().mean()) < 40  # of prices from 1200 to 2250
    root = Path(masks.removeprefix("maskfolder:"))
    trained(masks, task_options={"size": 16, "grey": True}, rounds=6, folder=tmp_path / "masks")
    codes = load_predictor(tmp_path / "masks").predict(root / "images").codes
    marked = np.stack([np.asarray(Image.open(p)) for p in sorted((root / "masks").iterdir())])
    assert float((codes.numpy() == marked)[marked != 255].mean()) > 0.97
    trained(mails, task_options={"length": 48}, rounds=12, folder=tmp_path / "mails")
    made = load_predictor(tmp_path / "mails").predict(["zz jazz buzz the moon is", "quick quick query a blue house"])
    assert made.labels == ["offer", "news"]
