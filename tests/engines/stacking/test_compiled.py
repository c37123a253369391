"""Compiled gradients of stacks agree with those of single calls."""

import shutil
import warnings

import pytest
import torch

from tests.engines.test_vectorized import HOOKED, go, ragged


def trained(task, kernels, kind, split=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        common = {"method": HOOKED, "options": {"kind": kind}, "rounds": 4, "chunk": 6, "one_step": False}
        prepared, _, vector = go(task, split, kernels=kernels, **common)
    return prepared.fed.engine.notes, vector


@pytest.mark.parametrize(("kind", "split"), [("adam", None), ("correct", ragged()), ("loss", None), ("direction", None)])
def test_the_traced_gradient_is_that_of_the_stack(task, kind, split, monkeypatch):
    traced = []
    monkeypatch.setattr(torch, "compile", lambda graph, **_: traced.append(graph) or graph)
    _, wanted = trained(task, "plain", kind, split)
    notes, found = trained(task, "graph,compile", kind, split)
    assert notes == {}
    assert bool(traced) == (kind != "direction")
    assert float((found - wanted).norm() / wanted.norm()) < 1e-6


def test_a_failure_to_compile_leaves_the_recorded_loop(task, monkeypatch):
    def fails(graph, **_):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", fails)
    _, wanted = trained(task, "plain", "adam")
    notes, found = trained(task, "graph,compile", "adam")
    assert list(notes.values()) == ["train without torch.compile: no compiler"]
    assert torch.equal(found, wanted)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize(("kind", "split"), [("adam", None), ("correct", ragged())])
def test_compiled_gradients_agree(task, kind, split):
    _, wanted = trained(task, "plain", kind, split)
    notes, found = trained(task, "graph,compile", kind, split)
    assert notes == {}
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5
