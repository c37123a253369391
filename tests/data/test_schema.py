"""Schemas: strict validation, JSON, and what a site's file becomes by one."""

import json

import numpy as np
import pandas as pd
import pytest

from paceline.core.errors import ConfigError, DataError, SchemaError, UnknownNameError
from paceline.data.files import read_files
from paceline.data.mapping import Names
from paceline.data.schema import Schema
from paceline.tasks import make_schema

SEX = ("f", "m")


def sample(folder, name="sample.csv", rows=60, **changes):
    """Write a table: age, sex with missing values, and the class."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"age": rng.integers(20, 80, rows), "sex": [(*SEX, "")[i % 3] for i in range(rows)]})
    frame["ill"] = [("no", "yes")[int(age > 50)] for age in frame["age"]]
    for column, change in changes.items():
        frame[column] = change(frame[column]) if callable(change) else change
    frame.to_csv(folder / name, index=False)
    return folder / name


@pytest.fixture
def schema(tmp_path):
    return make_schema(f"csv:{sample(tmp_path)}")[0]


def read(path, schema, names=None, **options):
    return read_files(f"csv:{path}", names, schema=schema, **options)[1]


def test_json_and_back(schema, tmp_path):
    (tmp_path / "s.json").write_text(schema.to_json())
    assert Schema.read(tmp_path / "s.json") == schema
    assert [(c.name, c.kind, c.missing) for c in schema.columns] == [("age", "number", False), ("sex", "category", True)]
    assert schema.width == 1 + 2 + 1


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        (lambda s: s | {"colour": 1}, "colour: Extra"),
        (lambda s: s | {"version": 2}, "version"),
        (lambda s: s | {"content": "image"}, "content 'image' has a picture and nothing"),
        (lambda s: s | {"columns": s["columns"] * 2}, "column 'age' is listed twice"),
        (lambda s: s | {"target": {"name": "age", "classes": ["a"]}}, "both an input and the target"),
        (lambda s: s | {"target": {"name": "ill", "classes": ["a", "a"]}}, "class 'a' is listed twice"),
        (lambda s: s | {"target": {"name": "ill"}}, "at least one class"),
        (lambda s: s | {"columns": [{"name": "x", "kind": "number", "categories": ["a"]}]}, "only a category has categories"),
        (lambda s: s | {"columns": [{"name": "x", "kind": "number", "deviation": 0}]}, "deviation"),
        (lambda s: [], "the whole"),
    ],
)
def test_malformed_schemas_are_refused_with_the_place(schema, change, reported):
    with pytest.raises(ConfigError, match=reported):
        Schema.parse(json.dumps(change(json.loads(schema.to_json()))))


def test_files_that_are_no_schema(tmp_path):
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(ConfigError, match="paceline schema FILE --out"):
        Schema.read(tmp_path / "s.json")
    with pytest.raises(DataError, match="paceline schema FILE --out"):
        Schema.read(tmp_path / "none.json")


def test_a_file_read_by_its_own_schema_has_the_same_bits(schema, tmp_path):
    path = tmp_path / "sample.csv"
    own, by_schema = read_files(f"csv:{path}")[1], read(path, schema)
    assert np.array_equal(own.train.x, by_schema.train.x)
    assert np.array_equal(own.test.y, by_schema.test.y)


def test_scale_and_codes_are_the_schema_s_not_the_site_s(schema, tmp_path):
    path = sample(tmp_path, "site.csv", age=lambda age: age + 1000, sex="m", ill=[("yes", "no")[i % 2] for i in range(60)])
    data = read(path, schema)
    assert data.train.x[:, 0].min() > 10  # the site's own scaling would have mean 0
    assert (data.train.x[:, 1:] == [0, 1, 0]).all()  # no column for "f" is lost
    assert data.classes == ("no", "yes")


def test_a_site_without_a_class_or_category_is_an_ordinary_site(schema, tmp_path):
    data = read(sample(tmp_path, "site.csv", ill="yes", sex="m"), schema)
    assert set(data.train.y.tolist()) == {1}
    assert any("no 0, yes 60" in note for note in data.notes)


def test_unknown_categories_are_counted_for_the_site_and_have_no_input(schema, tmp_path):
    path = sample(tmp_path, "site.csv", sex=[("f", "divers", "m")[i % 3] for i in range(60)])
    data = read(path, schema)
    assert any("20 rows with categories that the schema does not have: 'divers' 20x" in note for note in data.notes)
    assert (data.train.x[:, 1:].sum(1) == 0).sum() + (data.test.x[:, 1:].sum(1) == 0).sum() == 20


def test_missing_values_where_the_sample_had_none(schema, tmp_path):
    path = sample(tmp_path, "site.csv", age=lambda age: [None if i == 0 else a + 100 for i, a in enumerate(age)])
    data = read(path, schema)
    filled = (schema.columns[0].fill - schema.columns[0].mean) / schema.columns[0].deviation
    both = np.concatenate([data.train.x, data.test.x])
    assert np.isclose(both[:, 0], filled).sum() == 1


@pytest.mark.parametrize(
    ("changes", "reported", "secret"),
    [
        ({"age": lambda age: [f"{a} years" for a in age]}, "column 'age' is a number in the schema, but not in this file", "years"),
        ({"sex": "secretive"}, r"no value of column 'sex' is one of its categories \(f, m\)", "secretive"),
        ({"ill": "perhaps"}, r"the target 'ill' has values that are no class of the schema \(no, yes\)", "perhaps"),
        ({"ill": lambda ill: [None, *ill[1:]]}, "the target 'ill' has rows without value", "line 2"),
    ],
)
def test_differences_name_no_value_to_others(schema, tmp_path, changes, reported, secret):
    with pytest.raises(SchemaError, match=reported) as caught:
        read(sample(tmp_path, "site.csv", **changes), schema)
    assert secret in str(caught.value)
    assert secret not in " ".join(caught.value.shared)


def test_all_differences_are_listed(schema, tmp_path):
    frame = pd.read_csv(sample(tmp_path, "site.csv")).rename(columns={"age": "alter", "ill": "krank"})
    frame.to_csv(tmp_path / "site.csv", index=False)
    with pytest.raises(SchemaError) as caught:
        read(tmp_path / "site.csv", schema)
    assert [text.partition(";")[0] for text in caught.value.shared] == [
        "column 'age' (number) is missing",
        "the target 'ill' (class) is missing",
    ]
    assert "this file also has 'alter', 'krank': map it in [data.columns]" in caught.value.shared[0]


def test_a_mapping_explains_other_names(schema, tmp_path):
    path = sample(tmp_path, "own.csv", ill=lambda ill: ["ja" if v == "yes" else "nein" for v in ill])
    pd.read_csv(path)[["ill", "sex", "age"]].rename(columns={"age": "sex", "sex": "age"}).to_csv(path, index=False)  # swapped
    names = Names({"sex": "age", "age": "sex"}, {"ill": {"ja": "yes", "nein": "no"}})
    assert np.array_equal(read(path, schema, names).train.x, read(tmp_path / "sample.csv", schema).train.x)


@pytest.mark.parametrize(
    ("names", "reported"),
    [
        (Names({"agge": "age"}), "has no column 'agge'; did you mean age"),
        (Names({"age": "aeg"}), "the schema has no column 'aeg'; did you mean age"),
        (Names({"age": "sex"}), "more than one column .* becomes 'sex'"),
        (Names({}, {"il": {"ja": "yes"}}), "the schema has no column 'il'"),
    ],
)
def test_mappings_that_fit_neither_file_nor_schema(schema, tmp_path, names, reported):
    with pytest.raises(ConfigError, match=reported):
        read(tmp_path / "sample.csv", schema, names)


def test_a_data_frame_has_the_schema_of_its_file(schema, tmp_path):
    frame = pd.read_csv(tmp_path / "sample.csv")
    made, notes = make_schema(frame, target="ill")
    assert made == schema
    assert any(note.startswith("sex: category, 2 values") for note in notes)
    with pytest.raises(UnknownNameError, match="did you mean ill"):
        make_schema(frame, target="il")


def test_pictures_take_size_scale_and_codes_from_the_schema(tmp_path):
    from PIL import Image

    from paceline.tasks import load_task

    def folder(name, classes, level, size=9):
        for code, label in enumerate(classes):
            (tmp_path / name / label).mkdir(parents=True)
            for i in range(5):
                Image.new("RGB", (size, size), (level + 20 * code + i,) * 3).save(tmp_path / name / label / f"{i}.png")
        return f"imagefolder:{tmp_path / name}"

    schema, _ = make_schema(folder("server", ("cat", "dog", "emu"), 100), size=6)
    site = folder("site", ("dog", "katze"), 0, size=30)
    with pytest.raises(SchemaError, match=r"classes that the schema does not have \(cat, dog, emu\).*found: 'katze'") as caught:
        load_task(site, schema=schema)
    assert "katze" not in caught.value.shared[0]
    task = load_task(site, schema=schema, names=Names({}, {"": {"katze": "cat"}}))
    assert task.train.x.shape[1:] == (3, 6, 6)
    dog, cat = (task.train.x[task.train.y == code].mean() for code in (1, 0))
    assert dog < cat  # "dog" comes first in the site's folder, and second in the schema
    assert task.num_classes == 3
    assert task.train.x.max() < -3  # much darker than the server's pictures


def test_numpy_arrays_by_a_schema(tmp_path):
    rng = np.random.default_rng(0)
    for name, shift, labels in (("server", 0, 3), ("site", 100, 2)):
        np.savez(tmp_path / f"{name}.npz", x=rng.normal(size=(60, 4)) + shift, y=np.arange(60) % labels)
    schema, _ = make_schema(f"numpy:{tmp_path / 'server.npz'}")
    _, data = read_files(f"numpy:{tmp_path / 'site.npz'}", schema=schema)
    assert data.train.x.min() > 50
    assert data.classes == ("0", "1", "2")
    np.savez(tmp_path / "wide.npz", x=rng.normal(size=(60, 5)), y=np.arange(60) % 2)
    with pytest.raises(SchemaError, match="the schema has 4 columns"):
        read_files(f"numpy:{tmp_path / 'wide.npz'}", schema=schema)
