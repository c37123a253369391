"""FedPEFT: full tuning is FedAvg, what is frozen stays, the wire carries theta, other methods tune too."""

import hashlib
import warnings

import pytest

from paceline.core.errors import ConfigError, UnknownNameError
from paceline.models.tuning import Tuning
from paceline.run import StackingWarning
from paceline.store import load_checkpoint
from paceline.tasks import load_task
from paceline.tasks.tuning import parse_tuning, tune
from tests.methods.resuming import assert_resumes

PROTOTYPES = ["head", "bias", "norm", "adapter", "prompt", "ssf", "lora"]


def hashes(module, names):
    return {n: hashlib.sha256(t.detach().numpy().tobytes()).hexdigest() for n, t in module.state_dict().items() if n not in names}


def test_full_tuning_is_fedavg_bit_for_bit(tuning):
    options = {"momentum": 0.9, "lr": 0.05}
    full, plain = (tuning(method=m, options={**options, **o}) for m, o in (("fedpeft", {"peft": "full"}), ("fedavg", {})))
    assert full.model_sha256 == plain.model_sha256
    assert full.bytes_up == plain.bytes_up


@pytest.mark.parametrize("prototype", PROTOTYPES)
def test_what_is_frozen_stays_and_the_wire_carries_theta(tuning, prototype):
    run = tuning(go=False, options={"peft": prototype, "lr": 0.05})
    model, theta = run.fed.engine.here.model, run.fed.init_params()
    names = set(theta)
    before, start = hashes(model.module, names), theta.clone()
    reported = run.go().history[-1]
    assert hashes(model.module, names) == before
    assert len(before) > 5
    still = {n for n in names if bool((run.state.params[n] == start[n]).all())}
    assert not [n for n in still if not n.endswith("k_proj.bias")]  # biases of keys cancel in the softmax
    size = 4 * theta.layout.size
    assert size == 4 * sum(p.numel() for n, p in model.module.named_parameters() if n in names)
    assert size < 4 * sum(p.numel() for p in model.module.parameters())
    for way in ("bytes_up", "bytes_down"):  # 4 clients; a loss, a weight and headers beside theta
        assert 4 * size <= reported[way] <= 4 * (size + 100)


def test_only_theta_is_in_the_checkpoint(tuning, tmp_path):
    from paceline.store import RunFolder

    folder = RunFolder.create(tmp_path, "run")
    run = tuning(go=False, folder=folder, rounds=1)
    run.go()
    assert load_checkpoint(folder.checkpoint)["state"].params.layout.size == run.fed.init_params().layout.size
    assert folder.checkpoint.stat().st_size < 4 * run.fed.init_params().layout.size + 3000


@pytest.mark.parametrize("prototype", PROTOTYPES)
def test_stacked_clients_tune_alike(tuning, prototype):
    common = {"options": {"peft": prototype, "lr": 0.1}, "rounds": 2}
    alone = tuning(go=False, **common)
    alone.go()
    together = tuning(go=False, vectorize="on", chunk=4, **common)
    with warnings.catch_warnings():
        warnings.simplefilter("error", StackingWarning)
        together.go()
    a, b = alone.state.params.vector, together.state.params.vector
    assert float((a - b).norm() / a.norm()) < 1e-5
    moved = float((a - alone.fed.init_params().vector).norm() / a.norm())
    assert moved > 5e-4


def test_real_secure_aggregation_with_a_drop_out_has_the_bits_of_its_arithmetic(tuning):
    def drop(round, client, function):
        return round == 2 and client == 3 and function in ("secagg.masked", "train")

    common = {"clients": 6, "cohort": 6, "rounds": 2, "drop": drop, "secure": {"threshold": 4, "gamma": 0.05}}
    secure = tuning(aggregation="secure", **common)
    assert secure.model_sha256 == tuning(aggregation="secure-arithmetic", **common).model_sha256
    assert secure.history[1]["dropped"] == 1


@pytest.mark.parametrize("prototype", ["bias", "lora"])
def test_two_workers_end_with_the_same_bits(tuning, prototype):
    one, two = (tuning(workers=w, rounds=2, options={"peft": prototype}) for w in (1, 2))
    assert one.model_sha256 == two.model_sha256


def test_resumes_with_the_same_bits(tmp_path, digits):
    assert_resumes(tmp_path, digits, method="fedpeft", options={"adam": True, "lr": 0.01})


@pytest.mark.parametrize(("method", "options"), [("scaffold", {}), ("fedprox", {"mu": 0.1}), ("fedopt", {})])
def test_other_methods_tune_a_task_that_says_what_trains(tuning, digits, method, options):
    task = tune(digits, parse_tuning("bias"))
    run = tuning(go=False, method=method, task=task, options=options)
    names = set(run.fed.init_params())
    before = hashes(run.fed.engine.here.model.module, names)
    run.go()
    assert hashes(run.fed.engine.here.model.module, names) == before
    assert names == set(Tuning("bias").names(task.build(0)))


def test_the_option_of_a_task_is_read():
    assert parse_tuning("lora:rank=8,alpha=16,targets=q_proj/v_proj") == Tuning(
        "lora", rank=8, alpha=16.0, targets=("q_proj", "v_proj")
    )
    assert parse_tuning(" prompt : tokens=3, deep=false").deep is False
    for text, reported in (
        ("bias:width", "width=VALUE"),
        ("adapter:width=wide", "width"),
        ("adapter:width=0", "width"),
        ("biases", "bias"),
    ):
        with pytest.raises(ConfigError, match=reported):
            parse_tuning(text)
    with pytest.raises(UnknownNameError, match="did you mean rank"):
        parse_tuning("lora:rnk=3")
    task = load_task("digits", peft="head", limit=50)
    assert task.info["tuned"].startswith("head, 650 of ")
    with pytest.raises(ConfigError, match="already trains only a part of its model"):
        tune(task, Tuning("bias"))


def test_a_plain_network_is_tuned_too(tuning):
    task = load_task("digits", limit=100)
    assert set(tuning(go=False, task=task).fed.init_params()) == {"1.bias", "3.bias", "5.weight", "5.bias"}


def test_a_pretrained_transformer_is_trained_once_and_gets_a_new_head(tuning, tmp_path, monkeypatch):
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    options = {"dim": 8, "depth": 1, "heads": 2, "epochs": 2}
    task = load_task("vit-tuning", **options)
    files = list((tmp_path / "models").iterdir())
    assert len(files) == 1
    written = files[0].stat().st_mtime_ns
    again = load_task("vit-tuning", **options)
    assert files[0].stat().st_mtime_ns == written
    whole = load_task("digits")
    known = int((whole.train.y < 5).sum())
    assert len(task.train) == len(whole.train) - known // 2
    assert int((task.train.y >= 5).sum()) == int((whole.train.y >= 5).sum())
    one, other = task.build(1).state_dict(), again.build(2).state_dict()
    assert {n for n in one if not one[n].equal(other[n])} == {"head.weight"}
    assert float(one["head.bias"].abs().max()) == 0.0
    fresh = load_task("digits", model="vit", dim=8, depth=1, heads=2, patch=4).build(1).state_dict()
    assert not one["blocks.0.fc1.weight"].equal(fresh["blocks.0.fc1.weight"])
    assert tuning(task=task, rounds=1).rounds == 1


def test_a_transformer_is_pretrained_again_for_other_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    options = {"of": "digits", "dim": 8, "depth": 1, "heads": 2, "epochs": 1, "limit": 60}
    one, same, other = (load_task("vit-tuning", seed=seed, **options).build(1).state_dict() for seed in (1, 1, 2))
    assert one["blocks.0.fc1.weight"].equal(same["blocks.0.fc1.weight"])
    assert not one["blocks.0.fc1.weight"].equal(other["blocks.0.fc1.weight"])  # as many pictures, but others


def test_a_transformer_is_pretrained_on_the_groups_that_it_may_see(tmp_path, monkeypatch):
    monkeypatch.setenv("PACELINE_CACHE", str(tmp_path))
    options = {
        "of": "corrupted?of=digits&kinds=clean/inverted/contrast",
        "dim": 8,
        "depth": 1,
        "heads": 2,
        "epochs": 1,
        "limit": 90,
    }
    whole = load_task(options["of"], limit=90).train.owner.bincount().tolist()
    left = {seen: load_task("vit-tuning", classes=10, seen_groups=seen, **options) for seen in (1, 2, 3, None)}
    counts = {seen: task.train.owner.bincount().tolist() for seen, task in left.items()}
    assert counts[1] == [whole[0] - whole[0] // 2, *whole[1:]]
    assert sum(counts[2]) == sum(whole) - sum(whole[:2]) // 2
    assert counts[2][2] == whole[2]
    assert counts[3] == counts[None]
    weights = {seen: task.build(1).state_dict()["blocks.0.fc1.weight"] for seen, task in left.items()}
    assert not weights[1].equal(weights[2])
    assert weights[3].equal(weights[None])
    for of, seen in ((options["of"], 0), (options["of"], 4), (options["of"], 1.5), (options["of"], "all"), ("digits", 1)):
        with pytest.raises(ConfigError, match="seen_groups"):
            load_task("vit-tuning", **{**options, "of": of}, seen_groups=seen)
    with pytest.raises(ConfigError, match="no sample is left for pretraining"):
        load_task("vit-tuning", classes=1, seen_groups=1, **{**options, "limit": 4})
