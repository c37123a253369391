"""Anomaly detection: what sites and test pictures hold, the autoencoder's score, and a run that learns to tell corruptions apart."""

import numpy as np
import pytest
import torch

import paceline as pl
from paceline.core.errors import ConfigError
from paceline.data.corruptions import corrupt
from paceline.models.autoencoder import Autoencoder
from paceline.tasks import load_task
from paceline.tasks.anomaly import mean_score

SMALL = {"of": "digits", "widths": "8-16", "latent": 8, "tests": 40}


def test_the_last_sites_are_corrupted_and_copies_of_test_pictures():
    clean = load_task("anomaly", **SMALL, corrupted=0.0)
    task = load_task("anomaly", **SMALL, test_severity=2, test_kinds="fog/contrast")
    assert task.train.owners[6:] == ["site 6", "site 7 gaussian-noise", "site 8 impulse-noise", "site 9 shot-noise"]
    changed = (task.train.x != clean.train.x).flatten(1).any(1)
    assert not changed[task.train.owner < 7].any()
    assert changed[task.train.owner >= 7].float().mean() > 0.9
    assert torch.bincount(task.train.owner).max() - torch.bincount(task.train.owner).min() <= 1
    assert torch.bincount(task.test.owner).tolist() == [40, 40, 40]
    assert task.test.y.tolist() == [0] * 40 + [1] * 80
    pictures = (task.test.x[:40, 0] * 255).round().numpy().astype(np.uint8)
    fog = corrupt(pictures, "fog", 2, np.random.default_rng(0))
    assert abs(float(task.test.x[40:80].mean()) * 255 - fog.mean()) < 5
    assert len(load_task("anomaly", **SMALL, limit=50).train) == 50
    assert len(load_task("anomaly", **SMALL, test_kinds="all").test.owners) == 17


def test_test_pictures_of_several_severities():
    """The area under the curve over all of them is the mean over kinds and severities, as all have the same clean pictures."""
    options = {**SMALL, "test_kinds": "fog/contrast"}
    several, one, two = (load_task("anomaly", **options, test_severity=severity).test for severity in ("1/2", 1, "2"))
    assert several.owners == ["clean", "fog 1", "contrast 1", "fog 2", "contrast 2"]
    assert torch.bincount(several.owner).tolist() == [40] * 5
    assert one.owners == ["clean", "fog", "contrast"]
    assert torch.equal(several.x, torch.cat([one.x, two.x[40:]]))
    assert torch.equal(several.y, torch.cat([one.y, two.y[40:]]))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 28, 30), (1, 7, 9)])
def test_the_score_is_the_error_of_the_reconstruction(shape):
    module, x = Autoencoder(shape, (4, 8), 5).eval().requires_grad_(False), torch.rand(6, *shape)
    again = module.reconstruct(x)
    assert again.shape == x.shape
    assert 0 <= float(again.min()) <= float(again.max()) <= 1
    np.testing.assert_allclose(module(x), ((again - x) ** 2).numpy().mean((1, 2, 3)), rtol=1e-6)
    assert float(mean_score(module(x), torch.ones(6))) == pytest.approx(float(module(x).mean()))
    alone = [float(module(one[None])) for one in x]
    np.testing.assert_allclose(module(x), alone, rtol=1e-5)


def test_a_run_learns_to_tell_noise_from_digits_and_trusts_clean_sites():
    task = load_task("anomaly", **SMALL, sites=4, limit=360, test_severity=4)
    options = {"epochs": 4, "lr": 0.01, "batch_size": 16}
    result = pl.run("fedagain", task, clients=4, cohort=4, rounds=3, partition="natural", options=options)
    first, last = result.history[0], result.history[-1]
    assert result.metric == "auroc"
    assert last["auroc"] > 0.75
    assert last["part_0_loss"] < 0.7 * first["part_0_loss"]
    assert last["part_0_loss"] < last["part_1_loss"]
    assert last["note_weight_3"] < 0.15


@pytest.mark.parametrize(
    "options",
    [{"of": "heart-disease"}, {"corrupted": 1.0}, {"kinds": "fog/fog"}, {"kinds": "clean/fog"}, {"sites": 0}, {"widths": "0-4"}]
    + [{"test_severity": severity} for severity in (0, 6, "1/1", "1/", "x")],
)
def test_refusals(options):
    with pytest.raises(ConfigError):
        load_task("anomaly", **{**SMALL, **options}).build(0)
