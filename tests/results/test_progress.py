"""Progress in a terminal, a notebook and elsewhere."""

import os
import pty
import subprocess
import sys
from types import SimpleNamespace

import pytest

import paceline as pl
from paceline.results import progress
from tests.conftest import make_task

FIELDS = {"clients": 4, "rounds": 3}
CODE = "import paceline as pl; from paceline.tasks import blobs; pl.run('fedavg', blobs(), clients=4, rounds=3{more})"


@pytest.fixture
def notebook(monkeypatch):
    """Make this process the kernel of a notebook; return what it displays."""
    shown = []

    class Handle:
        def update(self, picture):
            shown.append(picture)

    def display(picture, display_id):
        assert display_id
        shown.append(picture)
        return Handle()

    module = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()), __name__="IPython", __path__=[])
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(HTML=str, display=display))
    return shown


def test_a_notebook_shows_a_bar(notebook, capsys):
    pl.run("fedavg", make_task(), **FIELDS)
    assert 'value="0" max="3"' in notebook[0]
    assert 'value="3" max="3"' in notebook[-1]
    assert "fedavg  3/3 · virtual" in notebook[-1]
    assert capsys.readouterr().err == ""


def test_a_comparison_shows_one_bar_after_another(notebook):
    pl.compare(["fedavg", "fedprox:mu=1"], make_task(), **FIELDS)
    assert "fedprox:mu=1, seed 0  3/3" in notebook[-1]


def test_drawings_are_few(notebook, monkeypatch):
    monkeypatch.setattr(progress.NotebookProgress, "EVERY", 1000.0)
    pl.run("fedavg", make_task(), clients=4, rounds=20)
    assert len(notebook) == 2


def test_labels_are_escaped(notebook):
    bar = progress.library_progress()
    bar.begin("<b>", 3)
    assert "&lt;b&gt;" in notebook[0]


def test_a_notebook_can_be_quiet(notebook):
    pl.run("fedavg", make_task(), progress=False, **FIELDS)
    assert notebook == []


def test_ipython_in_a_terminal_is_no_notebook(monkeypatch):
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace()))
    assert not progress.in_notebook()


def test_elsewhere_nothing_is_written(capsys):
    pl.run("fedavg", make_task(), **FIELDS)
    assert capsys.readouterr() == ("", "")


def test_lines_can_be_asked_for(capsys):
    pl.run("fedavg", make_task(), progress=True, **FIELDS)
    assert "round 3/3" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="pseudo-terminals")
@pytest.mark.parametrize(("more", "bar"), [("", True), (", progress=False", False)])
def test_a_terminal_shows_a_bar(more, bar):
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", CODE.format(more=more)], stderr=theirs, check=True, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 1 << 16):
            text += part
    except OSError:
        pass
    os.close(ours)
    assert ("3/3" in text.decode()) is bar


def test_an_observer_sees_every_round_beside_the_bar(notebook):
    seen = []
    pl.run("fedavg", make_task(), observer=lambda record, total: seen.append((record["round"], total)), **FIELDS)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert notebook
