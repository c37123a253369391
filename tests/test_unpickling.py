"""Nothing that comes from a file or over the network is unpickled, anywhere in the package."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

SRC = Path(__file__).parents[1] / "src" / "paceline"

LOADERS = {"load", "loads", "Unpickler", "open", "read_pickle"}
PICKLERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "jsonpickle", "joblib", "marshal", "shelve", "pandas"}
SHARED = {"numpy": "load", "torch": "load", "yaml": "load"}
"""Libraries with one function that may unpickle, beside much else."""

OWN_PROCESSES = {"engines/pipes.py": 3, "engines/ray_cluster.py": 1}
"""Where pickles are read: what this run's own processes wrote into their pipes, and into Ray's memory."""


def unpicklings(text: str) -> list[str]:
    """Return the lines of a program that read a pickle."""
    tree = ast.parse(text)
    modules: dict[str, str] = {}
    found: list[int] = []
    for each in ast.walk(tree):
        if isinstance(each, ast.Import):
            modules |= {alias.asname or alias.name: alias.name for alias in each.names}
        elif isinstance(each, ast.ImportFrom):
            root = (each.module or "").partition(".")[0]
            wrong = LOADERS if root in PICKLERS else {SHARED.get(root)}
            found += [each.lineno for alias in each.names if alias.name in wrong]
    safe = set()
    for each in ast.walk(tree):
        if isinstance(each, ast.Call):
            reported = {k.arg: ast.unparse(k.value) for k in each.keywords}
            if reported.get("allow_pickle") == "False" or reported.get("weights_only") == "True":
                safe.add(id(each.func))
            if reported.get("allow_pickle", "False") != "False" or reported.get("weights_only", "True") != "True":
                found.append(each.lineno)
    for each in ast.walk(tree):
        if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name):
            module = modules.get(each.value.id, "")
            shared = each.attr == SHARED.get(module) or (module == "yaml" and each.attr in ("unsafe_load", "full_load", "Loader"))
            if (module in PICKLERS and each.attr in LOADERS) or (shared and id(each) not in safe):
                found.append(each.lineno)
        elif isinstance(each, ast.Attribute) and each.attr == "Unpickler":  # such as importlib.import_module("pickle").Unpickler
            found.append(each.lineno)
    lines = text.splitlines()
    return [lines[number - 1].strip() for number in sorted(set(found))]


def test_nothing_in_the_package_unpickles_files_or_what_comes_over_the_network() -> None:
    found = {path.relative_to(SRC).as_posix(): unpicklings(path.read_text()) for path in SRC.rglob("*.py")}
    assert {name: len(lines) for name, lines in found.items() if lines} == OWN_PROCESSES, found
    assert Counter("self.pipe.recv_bytes()" in line for line in found["engines/pipes.py"]) == {True: 2, False: 1}  # and `thaw`


def test_the_search_finds_what_it_looks_for() -> None:
    for line in (
        "import pickle; pickle.load(f)",
        "import pickle as p\np.loads(x)",
        "import pickle\nclass A(pickle.Unpickler): pass",
        "from pickle import loads",
        "from joblib import load",
        "import importlib\nimportlib.import_module('ray.cloudpickle').Unpickler",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import torch\ntorch.load(f)",
        "import torch\ntorch.load(f, weights_only=False)",
        "import yaml\nyaml.load(text)",
        "import shelve\nshelve.open(path)",
    ):
        assert unpicklings(line), line
    for line in (
        "import numpy as np\nnp.load(path, allow_pickle=False)",
        "import yaml\nyaml.safe_load(text)",
        "import pickle\npickle.dumps(x)",
        "import json\njson.loads(text)",
        "import safetensors.torch\nsafetensors.torch.load(raw)",
        "from paceline.core.serialization import dumps, loads",
    ):
        assert not unpicklings(line), line
