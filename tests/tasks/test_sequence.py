"""Sequences of tasks: what is there when, how stages are judged, and what forgetting is."""

import pytest
import torch

from paceline.core.errors import ConfigError, UnknownNameError
from paceline.run import RunConfig, prepare, run
from paceline.tasks import load_task
from paceline.tasks.sequence import forgetting, permuted, split_classes, stage_accuracies


def test_permutations_keep_the_first_stage_and_shuffle_the_others_alike_in_train_and_test(task):
    out = permuted(task, stages=3, rounds_each=2, seed=4)
    n, m = len(task.train), len(task.test)
    assert torch.equal(out.train.x[:n], task.train.x)
    assert torch.equal(out.train.y, task.train.y.repeat(3))
    orders = []
    for stage in (1, 2):
        x = out.train.x[stage * n : (stage + 1) * n]
        order = [int((task.train.x == x[:, [j]]).all(0).nonzero()) for j in range(12)]
        assert sorted(order) == list(range(12))
        assert order != list(range(12))
        assert torch.equal(out.test.x[stage * m : (stage + 1) * m], task.test.x[:, order])
        orders.append(order)
    assert orders[0] != orders[1]


def test_clients_have_the_samples_of_the_rounds_stage_only(task):
    out = permuted(task, stages=3, rounds_each=2)
    rows = torch.tensor([0, 5, 240, 250, 500])
    seen = [out.present(rows, r).tolist() for r in range(1, 9)]
    assert seen == [[0, 5]] * 2 + [[240, 250]] * 2 + [[500]] * 4
    assert [r for r in range(1, 9) if out.ends_stage(r)] == [2, 4, 6]


def test_a_run_judges_every_stage_by_itself(task):
    config = RunConfig.build({"method": "fedavg", "task": "blobs", "clients": 4, "cohort": 4, "rounds": 4})
    sequence = permuted(task, stages=2, rounds_each=2)
    prepared = prepare(config, task=sequence)
    summary = prepared.go()
    last = summary.history[-1]
    found = stage_accuracies(last)
    assert len(found) == 2
    assert last["accuracy"] == pytest.approx(sum(found) / 2)
    module = sequence.build(0)
    params = prepared.method.model(prepared.state)
    module.load_state_dict({k: v.clone() for k, v in params.items()})
    right = module(sequence.test.x).argmax(1) == sequence.test.y
    assert found[1] == pytest.approx(float(right[80:].float().mean()))


def test_a_stage_without_samples_leaves_a_client_idle(task):
    sequence = split_classes(task, stages=2, rounds_each=1)
    config = RunConfig.build(
        {
            "method": "fedavg",
            "task": "blobs",
            "clients": 4,
            "cohort": 4,
            "rounds": 2,
            "partition": "shards:1",
            "vectorize": "on",
            "chunk": 4,
        }
    )
    assert run(config, task=sequence).rounds == 2


def test_heads_of_other_stages_neither_train_nor_win(task):
    sequence = split_classes(task, stages=2, rounds_each=1, heads=True)
    assert sequence.heads.tolist() == [[True, True, False, False], [False, False, True, True]]
    out = torch.tensor([[1.0, 0.0, 9.0, 9.0]], requires_grad=True)
    sequence.loss(out, torch.tensor([1])).backward()
    assert out.grad[0, 2:].tolist() == [0.0, 0.0]
    assert out.grad[0, 1] == pytest.approx(-0.7310586, abs=1e-6)
    rows, head = sequence.parts()[0]
    scores = head(lambda x: x, torch.tensor([[1.0, 2.0, 9.0, 8.0]]))
    assert scores.argmax(1).tolist() == [1]
    assert set(sequence.test.y[rows].tolist()) == {0, 1}


def test_forgetting_by_hand():
    def record(r, *parts):
        return {"round": r} | {f"part_{i}_accuracy": p for i, p in enumerate(parts)}

    history = [record(2, 0.9, 0.1, 0.1), record(4, 0.6, 0.8, 0.2), {"round": 5}, record(6, 0.5, 0.7, 0.9)]
    acc, fgt = forgetting(history, 2)
    assert acc == pytest.approx(0.7)
    assert fgt == pytest.approx((0.4 + 0.1) / 2)
    with pytest.raises(ConfigError, match=r"rounds \[4\]"):
        forgetting([history[0], history[3]], 2)


def test_sequences_are_tasks_by_name():
    out = load_task("split", stages=2, rounds_each=3, model="mlp", hidden=8, bias=False)
    assert (out.stages, out.rounds_each) == (2, 3)
    assert [n for n, _ in out.build(0).named_parameters()] == ["1.weight", "3.weight"]
    with pytest.raises(ConfigError, match="at least 1"):
        load_task("permuted", stages=0)
    with pytest.raises(UnknownNameError):
        load_task("permuted", of="nothing")
