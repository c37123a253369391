"""The scripts of docs/bring_your_own.md run and learn, and its tables name what is registered."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import torch

from paceline import registry
from paceline.models import build
from paceline.models.card import find_card
from paceline.tasks import task_source

PAGE = Path(__file__).parents[1] / "docs" / "bring_your_own.md"


def test_its_scripts_learn(monkeypatch):
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    code = "\n\n".join(block for block in blocks if not block.startswith("# my_lab"))
    module = types.ModuleType("bring_your_own")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, str(PAGE), "exec"), module.__dict__)
    assert module.classes.history[-1]["auroc"] > 0.9
    assert module.number.history[-1]["rmse"] < 5  # of a target with a deviation of about 20
    assert module.several.history[-1]["multilabel_macro_f1"] > 0.8
    assert module.pixels.history[-1]["dice"] > 0.7
    assert module.series.accuracy > 0.9
    assert module.texts.accuracy > 0.9
    assert module.pairs.accuracy > 0.6


def rows(title: str) -> list[list[str]]:
    table = PAGE.read_text().partition(title)[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table]


def test_its_tables_name_what_is_registered():
    named = [row[0].strip("`") for row in rows("| task | kind | data | licence | model |")]
    assert {name for name in named if ":" not in name} <= set(registry.names("task"))
    assert all(task_source(name) is not None for name in named if ":" not in name)
    measured = [row[0].strip("`") for row in rows("| task | clients | rounds |")]
    assert set(measured) == {name for name in named if ":" not in name}
    for row in rows("| model | takes | parameters |"):
        for name, size in zip(re.findall(r"`(\w+)`", row[0]), re.findall(r"[\d,]{5,}", row[2]), strict=False):
            if name != "mobilenet_v2":
                card = find_card(name)
                module = build(name, shape=card.shape, num_classes=card.num_classes)
                assert sum(p.numel() for p in module.parameters()) == int(size.replace(",", "")), name
