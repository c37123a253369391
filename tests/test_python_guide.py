"""The Python of docs/python.md is run as it stands, from top to bottom."""

import re
import sys
import types
from pathlib import Path

GUIDE = Path(__file__).parents[1] / "docs" / "python.md"


def test_the_guide_runs(tmp_path, monkeypatch, capsys):
    code = "\n\n".join(re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL))
    module = types.ModuleType("guide_of_python")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(GUIDE), "exec"), module.__dict__)
    assert (tmp_path / "compare.png").stat().st_size > 10_000
    assert (tmp_path / "first" / "model.safetensors").exists()
    assert module.result.accuracy > 0.8
    assert "3/3: " in capsys.readouterr().out


def test_it_names_all_of_the_face():
    import paceline

    text = GUIDE.read_text()
    assert [name for name in paceline.__all__ if f"`pl.{name}`" not in text] == []
