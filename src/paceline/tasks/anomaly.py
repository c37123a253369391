"""Anomaly detection: an autoencoder learns what pictures look like, and tells corrupted ones by their reconstruction error.

Clients are sites with clean pictures, except for a share of them whose training pictures are all corrupted. Test pictures are clean
(target 0), and copies with each corruption (target 1). The model returns scores; the loss is their mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from paceline.core.arrays import Arrays
from paceline.core.errors import ConfigError
from paceline.core.random import numpy_rng
from paceline.data.corruptions import CORRUPTIONS, corrupt
from paceline.data.raw import Array
from paceline.data.sources import find_source
from paceline.metrics.ranking import AUROC, Youden
from paceline.models.autoencoder import Autoencoder
from paceline.tasks.datasets import DataRecipe
from paceline.tasks.domains import DomainTask
from paceline.tasks.images import channels_first
from paceline.tasks.recipe import find_recipe, task_card

__all__ = ["load_anomaly", "mean_score"]

_BINS = 20_000
"""Bins of the metrics: scores are small numbers, which fall into a narrow part of the range of logits."""


def mean_score(scores: Tensor, targets: Tensor) -> Tensor:
    """Return the mean score; targets are not read."""
    return scores.mean()


def _kinds(text: str, name: str) -> list[str]:
    kinds = text.split("/")
    if "clean" in kinds or len(set(kinds)) < len(kinds):
        raise ConfigError(f"{name}={text} must name different corruptions, such as gaussian-noise/shot-noise")
    return list(CORRUPTIONS) if text == "all" else kinds


@task_card("pictures at sites, some of them corrupted; corrupted test pictures are to be found", "an autoencoder", "fashion-mnist")
def load_anomaly(
    seed: int = 0,
    of: str = "fashion-mnist",
    sites: int = 10,
    corrupted: float = 0.3,
    kinds: str = "gaussian-noise/impulse-noise/shot-noise",
    severity: int = 5,
    test_kinds: str = "",
    test_severity: int | str = 1,
    tests: int = 500,
    widths: str = "16-32-64",
    latent: int = 16,
    limit: int | None = None,
) -> DomainTask:
    """Return the task; client = site (``partition=natural``).

    Args:
        seed: of the choice of training pictures, where there is a `limit`.
        of: data set of pictures, whose classes are not read.
        sites: number of sites, with equally many pictures.
        corrupted: share of sites with corrupted pictures: the last ones, with `kinds` in turn.
        kinds, severity: corruptions of training pictures, ``all`` or names of `paceline.data.corruptions.CORRUPTIONS`.
        test_kinds, test_severity: corruptions of test pictures; by default the same kinds. Of several severities, such as
            ``1/2/3``, each is applied.
        tests: most clean test pictures; of each of them there is a copy with each corruption.
        widths, latent: of the `Autoencoder`.
        limit: most training pictures, of all sites together.

    Raises:
        ConfigError: an option is outside its range, or the data are not pictures.
    """
    recipe = find_recipe(of)
    if not isinstance(recipe, DataRecipe) or recipe.defaults.content != "image":
        raise ConfigError(f"of={of} must be a data set of pictures, such as fashion-mnist or cifar10-test-split")
    if not 0 <= corrupted < 1 or sites < 1 or tests < 1:
        raise ConfigError(f"corrupted={corrupted}, sites={sites}, tests={tests}: a share below 1, and whole numbers of at least 1")
    raw = find_source(recipe.source).load()
    assert raw.test is not None
    used, found = _kinds(kinds, "kinds"), _kinds(test_kinds or kinds, "test_kinds")
    order = numpy_rng(seed, "anomaly", "limit").permutation(len(raw.train))[:limit]
    owner, bad = np.arange(len(order)) % sites, round(corrupted * sites)
    x, names = raw.train.x[order], [f"site {site}" for site in range(sites)]
    for number, site in enumerate(range(sites - bad, sites)):
        rows, kind = np.flatnonzero(owner == site), used[number % len(used)]
        x[rows] = corrupt(x[rows], kind, severity, numpy_rng(0, "anomaly", site))
        names[site] += f" {kind}"
    clean = raw.test.x[np.sort(numpy_rng(0, "anomaly", "tests").permutation(len(raw.test))[:tests])]
    made = [(kind, level) for level in _levels(str(test_severity)) for kind in found]
    parts = [clean, *(corrupt(clean, kind, level, numpy_rng(0, "anomaly", kind)) for kind, level in made)]
    which = torch.arange(len(parts)).repeat_interleave(len(clean))
    shown = _pictures(x)
    return DomainTask(
        name=f"anomalies in {of}",
        train=Arrays(shown, torch.zeros(len(x), dtype=torch.int64), torch.from_numpy(owner), names),
        test=Arrays(_pictures(np.concatenate(parts)), (which > 0).long(), which, ["clean", *_called(made)]),
        model=partial(Autoencoder, tuple(shown.shape[1:]), tuple(map(int, widths.split("-"))), latent),
        loss=mean_score,
        lr=0.1,
        batch_size=32,
        notes=f"{sites} sites, {bad} of them with {', '.join(used)} of severity {severity}",
        metrics=(AUROC(_BINS), Youden(_BINS)),
        info={"model": "autoencoder"},
    )


def _levels(text: str) -> list[int]:
    """Return the severities that an option names."""
    found = text.split("/")
    if not all(level in ("1", "2", "3", "4", "5") for level in found) or len(set(found)) < len(found):
        raise ConfigError(f"test_severity={text} must be one or several different numbers from 1 to 5, such as 1/2/3")
    return [int(level) for level in found]


def _called(made: Sequence[tuple[str, int]]) -> list[str]:
    """Return the names of corruptions, with their severities if these are several."""
    several = len({level for _, level in made}) > 1
    return [f"{kind} {level}" if several else kind for kind, level in made]


def _pictures(x: Array) -> Tensor:
    """Return pictures with values from 0 to 1."""
    return channels_first(x, 255.0)
