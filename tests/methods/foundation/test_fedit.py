"""FedIT: means of factors, the gap of their products, masks, what is frozen, the real language model."""

import hashlib
import time
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from paceline.core.layout import Layout
from paceline.core.method import on_client
from paceline.core.params import Params
from paceline.methods.foundation.fedit import FedIT, gap, products
from paceline.run import RunConfig, StackingWarning, prepare
from paceline.store import RunFolder
from paceline.tasks import load_task
from tests.conftest import fetched
from tests.methods.resuming import assert_resumes

TWO = Layout.build([("l.lora_A.default.weight", (1, 2), "param"), ("l.lora_B.default.weight", (2, 1), "param")])


@pytest.fixture(scope="session")
def instructions(tmp_path_factory):
    """Return the eight categories and a small model that was hardly pretrained."""
    patch = pytest.MonkeyPatch()
    patch.setenv("PACELINE_CACHE", str(tmp_path_factory.mktemp("cache")))
    try:
        return load_task("instructions", each=6, held=2, texts=96, epochs=1)
    finally:
        patch.undo()


@pytest.fixture
def tuned(instructions):
    """Return a function that prepares a run of FedIT, and carries it out with `go`."""

    def make(go=True, task=instructions, **changes):
        values = {"method": "fedit", "task": "instructions", "clients": 4, "cohort": 4, "rounds": 2, "partition": "shards:2"}
        values |= {"eval_every": 2, "vectorize": "off", **changes}
        values["options"] = {"rank": 4, "alpha": 8, "lr": 0.01, **changes.get("options", {})}
        parts = {name: values.pop(name) for name in ("drop", "folder") if name in values}
        prepared = prepare(RunConfig.build(values), task=task, **parts)
        return prepared.go() if go else prepared

    return make


def frozen(run):
    """Return the hash of each tensor of the worker's module that is not part of theta."""
    names = set(run.fed.init_params())
    state = run.fed.engine.here.model.module.state_dict()
    return {n: hashlib.sha256(t.detach().numpy().tobytes()).hexdigest() for n, t in state.items() if n not in names}


@dataclass(frozen=True)
class Told(FedIT):
    """Shows what each client trained."""

    @on_client(each=True)
    def tell(self, client, message):
        return client.sgd(message, **self.local(client)).params


def factors(a, b):
    return Params(torch.tensor([*a, *b]), TWO)


def test_factors_are_averaged_by_samples_and_the_gap_is_that_of_the_worked_example():
    one, two = factors((1.0, 0.0), (1.0, 0.0)), factors((0.0, 1.0), (0.0, 1.0))
    mean = (100 * one + 300 * two) / 400
    assert mean["l.lora_B.default.weight"].flatten().tolist() == [0.25, 0.75]
    assert mean["l.lora_A.default.weight"].flatten().tolist() == [0.25, 0.75]
    half = (one + two) / 2
    assert products(half)["l"].tolist() == [[0.25, 0.25], [0.25, 0.25]]
    means = {"l": (products(one)["l"] + products(two)["l"]) / 2}
    assert means["l"].tolist() == [[0.5, 0.0], [0.0, 0.5]]
    assert gap(means, half) == pytest.approx(0.5)
    assert gap({}, Params(torch.zeros(1), Layout.build([("w", (1,), "param")]))) == 0.0


def test_a_round_averages_what_the_clients_trained(tuned, monkeypatch):
    """The mean of a round against numpy, from what each client trained, with unequal numbers of samples."""
    seen = []
    real = FedIT.train

    def spy(self, client, message):
        update = real(self, client, message)
        seen.append((client.num_samples, (message + update.delta).vector.double().numpy()))
        return update

    spy.__client__, spy.__name__ = real.__client__, "train"
    monkeypatch.setattr(FedIT, "train", spy)
    run = tuned(go=False, rounds=1, partition="quantity:1.0", options={"monitor": True})
    layout = run.fed.init_params().layout
    summary = run.go()
    weights = np.array([n for n, _ in seen], dtype=float)
    assert len(set(weights)) > 1
    mean = np.average([v for _, v in seen], axis=0, weights=weights)
    np.testing.assert_allclose(run.state.params.vector.numpy(), mean, atol=1e-7)
    apart = 0.0
    for name in (n for n in layout.by_name if ".lora_A." in n):

        def part(vector, which, name=name):
            return layout.view(torch.from_numpy(vector), name.replace(".lora_A.", which)).numpy()

        each = [part(v, ".lora_B.") @ part(v, ".lora_A.") for _, v in seen]
        apart += np.square(np.average(each, axis=0, weights=weights) - part(mean, ".lora_B.") @ part(mean, ".lora_A.")).sum()
    assert summary.history[0]["note_lora_gap"] == pytest.approx(np.sqrt(apart), rel=1e-3)
    assert summary.history[0]["note_lora_gap"] > 0


def test_one_client_s_round_is_local_training_and_the_base_never_changes(tuned):
    run = tuned(go=False, clients=1, cohort=1, rounds=1, partition="iid", options={"epochs": 2})
    before, theta = frozen(run), run.fed.init_params()
    local = {}
    real = type(run.method).train

    def spy(self, client, message):
        local["params"] = client.sgd(message, **self.local(client)).params
        client._loops = 0  # the same batches once more
        return real(self, client, message)

    spy.__client__, spy.__name__ = real.__client__, "train"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(run.method), "train", spy)
        run.go()
    trained = local["params"]
    assert run.state.params.vector.equal(theta.vector + (trained.vector - theta.vector))
    torch.testing.assert_close(run.state.params.vector, trained.vector, rtol=1e-6, atol=1e-9)
    assert not trained.vector.equal(theta.vector)
    assert frozen(run) == before


def test_the_first_broadcast_holds_common_factors(tuned):
    run = tuned(go=False)
    theta = run.fed.init_params()
    assert len(theta) == 2 * 4 * 4 * (64 + 64)  # layers x (q, k, v, o) x r (in + out)
    assert all(bool(theta[n].any()) == ("lora_A" in n) for n in theta)
    again = tuned(go=False).fed.init_params()
    assert theta.vector.equal(again.vector)
    assert not theta.vector.equal(tuned(go=False, seed=1).fed.init_params().vector)


def test_moments_do_not_pass_from_client_to_client(tuned):
    """Client 1 ends where it ends whether or not client 0 trained before it."""

    def go(cohort):
        run = tuned(go=False, method=f"{__name__}:Told")
        run.fed.start_round(1)
        return run.fed.each(run.method.tell, run.fed.init_params(), over=cohort)[1].vector

    assert go([1]).equal(go([0, 1]))


def test_the_wire_and_the_checkpoint_carry_theta_alone(tuned, tmp_path):
    folder = RunFolder.create(tmp_path, "run")
    run = tuned(go=False, folder=folder)
    size = 4 * run.fed.init_params().layout.size
    reported = run.go().history[-1]
    for way in ("bytes_up", "bytes_down"):
        assert 4 * size <= reported[way] <= 4 * (size + 100)
    assert folder.checkpoint.stat().st_size < size + 5000
    whole = sum(p.numel() for p in run.fed.engine.here.model.module.parameters())
    assert size < whole


def test_every_category_is_judged(tuned, instructions):
    reported = tuned().history[-1]
    rows = [r for r, _ in instructions.parts()]
    assert [len(r) for r in rows] == [2] * 8
    assert sorted(torch.cat(rows).tolist()) == list(range(16))
    counts = [int((instructions.test.y[r] >= 0).sum()) for r in rows]
    mean = np.average([reported[f"part_{i}_loss"] for i in range(8)], weights=counts)
    assert mean == pytest.approx(reported["loss"])


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_two_workers_end_with_the_same_bits(tuned, dropout):
    one, two = (tuned(workers=w, options={"dropout": dropout}) for w in (1, 2))
    assert one.model_sha256 == two.model_sha256
    assert one.model_sha256 != tuned(options={"dropout": 0.1}).model_sha256


def test_stacked_clients_tune_alike(tuned):
    alone, together = tuned(go=False), tuned(go=False, vectorize="on", chunk=4)
    alone.go()
    with warnings.catch_warnings():
        warnings.simplefilter("error", StackingWarning)
        together.go()
    a, b = alone.state.params.vector, together.state.params.vector
    assert float((a - b).norm() / a.norm()) < 1e-4
    assert float((a - alone.fed.init_params().vector).norm() / a.norm()) > 0.05


def test_real_secure_aggregation_with_a_drop_out_has_the_bits_of_its_arithmetic(tuned):
    def drop(round, client, function):
        return round == 2 and client == 3 and function in ("secagg.masked", "train")

    common = {"clients": 5, "cohort": 5, "drop": drop, "secure": {"threshold": 3, "gamma": 0.05}}
    secure = tuned(aggregation="secure", **common)
    assert secure.model_sha256 == tuned(aggregation="secure-arithmetic", **common).model_sha256
    assert secure.history[1]["dropped"] == 1


@pytest.mark.parametrize("method", ["fedit", "localtuning"])
def test_resumes_with_the_same_bits(tmp_path, instructions, method):
    options = {"rank": 2, "alpha": 4, "lr": 0.01}
    assert_resumes(tmp_path, instructions, method=method, partition="shards:2", eval_every=4, options=options)


def test_federated_tuning_knows_more_than_tuning_alone(tuned):
    """Small: a few rounds; the full comparison is in the table of effects."""
    common = {"rounds": 4, "evaluation": "clients-central", "eval_every": 4}
    assert tuned(**common).loss < tuned(method="localtuning", **common).loss


@pytest.mark.slow
def test_a_real_language_model_is_tuned(tmp_path):
    """SmolLM2 on questions and answers by topic: LoRA of rank 4 on q and v, a round of four clients."""
    fetched("chatterbot")
    fetched("smollm2-135m")
    pytest.importorskip("peft")
    task = load_task("chatterbot", length=64, topics=4, held=5, limit=16)
    folder = RunFolder.create(tmp_path, "run")
    values = {"method": "fedit", "task": "chatterbot", "partition": "natural", "clients": 4, "cohort": 4, "rounds": 1}
    values["options"] = {"rank": 4, "alpha": 8, "lr": 1e-3, "targets": ["q_proj", "v_proj"]}
    run = prepare(RunConfig.build(values), task=task, folder=folder)
    before, base = frozen(run), run.fed.engine.evaluate(run.fed.init_params())
    theta = run.fed.init_params().layout.size
    assert theta == 30 * 4 * ((576 + 576) + (576 + 192))
    started = time.perf_counter()
    summary = run.go()
    print(f"\n{time.perf_counter() - started:.0f} s; loss {base['loss'] / base['count']:.3f} -> {summary.loss:.3f}; {run.path}")
    assert summary.loss < base["loss"] / base["count"]
    assert frozen(run) == before
    assert 16 * theta <= summary.bytes_up <= 16 * (theta + 100)
    assert folder.checkpoint.stat().st_size < 4 * theta + 20_000  # names of 120 tensors
