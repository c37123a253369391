"""The examples run as they stand, and end with figures that make sense; every example is on its page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import fetched

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "examples"
SCRIPTS = ["own_method", "own_data", "stragglers", "personal_models", "loopback_federation"]
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
DATA = {"stragglers": "mnist-5k", "stragglers_under_secure_aggregation": "mnist-5k"}


def ready(name: str) -> None:
    """Skip where an example's data are missing."""
    if name in DATA:
        fetched(DATA[name])


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]), "MPLBACKEND": "Agg"}


def output(name: str, folder: Path) -> str:
    """Run a script in a folder of its own; return what it prints."""
    ready(name)
    words = [sys.executable, str(FOLDER / f"{name}.py")]
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def accuracies(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"accuracy ([\d.]+) %", text)]


@pytest.mark.slow
def test_own_method_clips_more_the_shorter_it_is_told(tmp_path: Path) -> None:
    plain, mild, harsh = accuracies(output("own_method", tmp_path))
    assert plain > 90
    assert mild > 90
    assert harsh < 60


@pytest.mark.slow
def test_own_data_leaves_a_usable_model(tmp_path: Path) -> None:
    text = output("own_data", tmp_path)
    (accuracy,) = accuracies(text)
    assert accuracy > 90
    assert f"by hand {accuracy:.1f} %" in text
    assert (tmp_path / "spirals.pt").stat().st_size > 1000


@pytest.mark.slow
def test_stragglers_compares_three_methods(tmp_path: Path) -> None:
    text = output("stragglers", tmp_path).lower()
    assert all(name in text for name in ("fedavg", "dropstragglers", "clip"))


@pytest.mark.slow
def test_models_of_one_s_own_suit_clients_better(tmp_path: Path) -> None:
    shared, clustered, tuned = accuracies(output("personal_models", tmp_path))
    assert clustered > tuned > shared


@pytest.mark.slow
def test_the_loopback_federation_ends_with_the_bits_of_the_simulation(tmp_path: Path) -> None:
    text = output("loopback_federation", tmp_path)
    assert text.count("round ") == 3
    assert "same bits as the simulation: True" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ready(name)
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    for key, value in environment().items():
        monkeypatch.setenv(key, value)
    book = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbclient.NotebookClient(book, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    printed = "".join(o.get("text", "") for cell in book.cells for o in cell.get("outputs", ()) if o["output_type"] == "stream")
    assert all(found > 60 for found in accuracies(printed))
    assert len(accuracies(printed)) >= 1


def cells(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"]
    return found


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_stored_without_output(name: str) -> None:
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells(name))
    assert cells(name)[0]["cell_type"] == "markdown"


def test_every_example_is_on_the_page_and_tested() -> None:
    page = (ROOT / "docs" / "examples.md").read_text()
    files = {path.name for path in FOLDER.iterdir() if path.is_file()}
    assert set(re.findall(r"^\| `([\w.]+)`", page, re.MULTILINE)) == files
    assert {f"{name}.py" for name in SCRIPTS} | {"my_method.py"} == {name for name in files if name.endswith(".py")}
    assert len(NOTEBOOKS) == 2
