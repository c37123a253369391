"""`paceline schema`, and the dry run of a site."""

import json

import pytest
from typer.testing import CliRunner

from paceline.cli.app import app
from paceline.data.schema import Schema


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{20 + i % 50};{i / 7:.2f};{'abc'[i % 3]}\n" for i in range(60)).replace(".", ",")
    (tmp_path / "t.csv").write_text("age;dose;kind\n" + rows)
    (tmp_path / "c.toml").write_text('[client]\nfolder = "ann"\n[data]\ntask = "csv:t.csv"\nschema_file = "s.json"\n')
    return tmp_path


def paceline(*words):
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.output


def test_a_schema_is_shown_and_saved():
    code, said = paceline("schema", "csv:t.csv", "--unit", "age=years", "--out", "s.json")
    assert code == 0
    for word in ("age", "years", "3 classes: a, b, c", "separated by semicolons", "dose: number from 0 to 8.43 (decimal commas)"):
        assert word in said
    made = Schema.read("s.json")
    assert made.columns[0].unit == "years"
    code, said = paceline("schema", "s.json", "--json")
    assert Schema.of(json.loads(said)["schema"]) == made


def test_what_is_no_schema_and_no_file():
    code, said = paceline("schema", "t.csv")
    assert (code, "write csv:t.csv" in said) == (2, True)
    code, said = paceline("schema", "csv:t.csv", "--unit", "agee=years")
    assert (code, "did you mean age" in said) == (2, True)
    code, said = paceline("schema", "csv:t.csv", "-o", "target=age")
    assert (code, "so a regression" in said, "target 'age': a number" in said) == (0, True, True)


def test_a_run_stores_its_schema(place):
    assert paceline("run", "fedavg", "--task", "csv:t.csv", "--rounds", "1", "--clients", "3", "--name", "r", "-q")[0] == 0
    code, said = paceline("schema", "runs/r")
    assert (code, "3 classes" in said) == (0, True)


def test_the_dry_run_reads_maps_and_trains_one_batch(place):
    paceline("schema", "csv:t.csv", "--standardize", "federated", "--out", "s.json")
    code, said = paceline("client", "--config", "c.toml", "--check")
    assert code == 0
    for word in (
        "s.json: the data match",
        "samples: 60, of which 60",
        "sums of 2 inputs and of their squares",
        "kind: a 20, b 20, c 20",
        "after one step",
    ):
        assert word in said
    assert not (place / "ann").exists()
    (place / "t.csv").write_text((place / "t.csv").read_text().replace("c\n", "d\n"))
    code, said = paceline("client", "--config", "c.toml", "--check")
    assert (code, "'d' 20x" in said) == (5, True)
    with open("c.toml", "a") as file:
        file.write('[data.values.kind]\nd = "c"\n')
    assert paceline("client", "--config", "c.toml", "--check")[0] == 0


def test_a_site_may_have_one_row_and_sets_tests_aside_only_if_it_says_so(place):
    paceline("schema", "csv:t.csv", "--out", "s.json")
    (place / "c.toml").write_text((place / "c.toml").read_text().replace("t.csv", "t.csv?test=0.5"))
    assert "samples: 60, of which 30" in paceline("client", "--config", "c.toml", "--check")[1]
    (place / "c.toml").write_text((place / "c.toml").read_text().replace("?test=0.5", ""))
    (place / "t.csv").write_text("\n".join((place / "t.csv").read_text().splitlines()[:2]))
    code, said = paceline("client", "--config", "c.toml", "--check")
    assert (code, "samples: 1, of which 1" in said, "after one step" in said) == (0, True, True)
    code, said = paceline("run", "fedavg", "--task", "csv:t.csv", "--task-option", "test=0")
    assert (code, "test=0 leaves no samples for tests" in said) == (2, True)


def test_the_dry_run_without_a_schema_says_so(place):
    (place / "c.toml").write_text('[data]\ntask = "csv:t.csv"\n')
    code, said = paceline("client", "--config", "c.toml", "--check")
    assert (code, "no schema to compare with" in said) == (0, True)
    (place / "c.toml").write_text("[data]\n")
    code, said = paceline("client", "--config", "c.toml", "--check")
    assert (code, "names no data; set task in [data]" in said) == (2, True)
