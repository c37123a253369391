"""The GPU benchmark runs: small on a CPU, and its parts for a GPU on a pretended one."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gpu
from gpu_study.by_hand import Loop, Stacked
from gpu_study.workloads import CIFAR
from tests.pretend import pretended


def test_it_runs_small_on_a_cpu(tmp_path, capsys):
    rows = gpu.main(["--device", "cpu", "--small", "--json", str(tmp_path / "gpu.json")])
    assert {row.part for row in rows} == set(gpu.PARTS)
    assert [row for row in rows if row.value is None] == []
    figures = {row.what: row.value for row in rows}
    assert next(value for what, value in figures.items() if what.startswith("methods of ")) == 0
    assert figures["by hand: baddbmm, float32"] > 0
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert len(record["rows"]) == len(rows)
    assert "ms/round" in capsys.readouterr().out


@pytest.mark.slow
def test_its_parts_keep_their_tensors_on_the_gpu(tmp_path):
    with pretended():
        rows = gpu.main(["--small", "--only", "evaluation,lora,memory,long", "--json", str(tmp_path / "gpu.json")])
    assert [row for row in rows if row.value is None] == []


def test_a_part_that_fails_is_a_row_with_the_error(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu.Bench, "ours", lambda *_, **__: 1 / 0)
    rows = gpu.main(["--device", "cpu", "--small", "--only", "lstm", "--json", str(tmp_path / "gpu.json")])
    assert [(row.value, row.note) for row in rows] == [(None, "ZeroDivisionError: division by zero")] * 2


@pytest.mark.parametrize("form", ["vmap", "baddbmm"])
def test_what_is_written_by_hand_computes_what_the_loop_does(form):
    work = CIFAR[True]
    task = work.task()
    torch.manual_seed(3)
    loop = Loop(work, task, "cpu", "float32")
    stacked = Stacked(work, task, "cpu", "float32", form)
    clients = torch.arange(work.cohort)
    order = torch.stack([torch.arange(work.samples)] * work.cohort) + clients[:, None] * work.samples
    stacked.rows.copy_(order.view(work.cohort, work.steps, work.batch).transpose(0, 1))
    stacked._local()
    draws = iter([torch.arange(work.clients), *[torch.arange(work.samples)] * work.cohort])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randperm", lambda count: next(draws))
        loop.round()
    for one, other in zip(loop.parameters, stacked.start, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
