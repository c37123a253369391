"""Tasks by name: a data set, its reference model, and defaults under which the two learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from paceline.data.files import FileKind, file_kinds, is_file_task, read_files
from paceline.data.raw import Array, Part, RawData
from paceline.data.sources import Source, find_source
from paceline.errors import ConfigError, UnknownNameError
from paceline.models import build, parse_model
from paceline.params import Buffers
from paceline.rng import numpy_rng
from paceline.tasks.task import Arrays, Task

__all__ = ["describe_tasks", "load_task", "task_names"]


@dataclass(frozen=True)
class _Defaults:
    """What a task uses unless told otherwise; `rates` are learning rates of further models."""

    model: str
    lr: float
    batch_size: int
    rates: Mapping[str, float]


_TASKS = {
    "digits": _Defaults("mlp", 0.1, 20, {"logistic": 0.1, "tiny_cnn": 0.05}),
    "mnist-5k": _Defaults("tiny_cnn", 0.05, 20, {"logistic": 0.02}),
    "fashion-mnist": _Defaults("cnn", 0.05, 20, {"logistic": 0.01}),
    "cifar10-test-split": _Defaults("vgg9", 0.05, 20, {"logistic": 0.005}),
    "fontwriters": _Defaults("femnist_cnn", 0.05, 10, {"logistic": 0.02}),
    "shakespeare": _Defaults("lstm", 1.0, 128, {}),
}
_RATES = {"lstm": 1.0, "logistic": 0.02}
_RATE = 0.05
_LIMITS = ("max_train", "max_test")


def task_names() -> list[str]:
    """Return the names of the tasks with data of their own; files are named ``kind:/path``, see `file_kinds`."""
    return list(_TASKS)


def describe_tasks() -> list[dict[str, str | bool | float]]:
    """Return for each task its name, whether its data are there, its model and defaults, and a description."""
    out: list[dict[str, str | bool | float]] = []
    for name, chosen in _TASKS.items():
        source = find_source(name)
        row = {"name": name, "ready": source.ready(), "model": chosen.model, "lr": chosen.lr}
        out.append({**row, "batch": chosen.batch_size, "about": source.about})
    return out


def load_task(name: str, model: str | None = None, seed: int = 0, **options: Any) -> Task:
    """Return a task with its data in memory; nothing is fetched.

    Train and test parts are fixed: they do not depend on `seed`. Pictures are scaled to 0..1 and standardised
    by the mean and deviation of each channel of the training part; texts are character codes (uint8).

    Args:
        name: see `task_names`, or ``kind:/path`` of your own files (`paceline.data.files`).
        model: a reference model in place of the task's own, as in ``vgg9:norm=group``.
        seed: decides which samples stay under `max_train` and `max_test`.
        options: ``max_train`` and ``max_test``, to keep fewer samples; else the options of the data: ``families``
            of fontwriters; ``roles``, ``min_lines``, ``stride`` of shakespeare; those of a kind of file.

    Raises `UnknownNameError` for a name, model or option that does not exist, `MissingDataError` with the
    command to run when the data were not fetched yet, `DataFormatError` for malformed files.
    """
    limits = {key: options.pop(key) for key in _LIMITS if key in options}
    for key, value in limits.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{key}={value!r}; a whole number of at least 1 is needed")
    if is_file_task(name):
        return _from_files(name, model, seed, limits, options)
    if name not in _TASKS:
        known = [*_TASKS, *(f"{kind}:/path" for kind in file_kinds())]
        raise UnknownNameError("task", name, known)
    chosen, source = _TASKS[name], find_source(name)
    text = model or chosen.model
    plain, _ = parse_model(text)
    data = source.load(**_known(source, options))
    lr = chosen.lr if plain == chosen.model else chosen.rates.get(plain, _RATES.get(plain, _RATE))
    info = {"source": source.about, "licence": source.licence}
    return _task(name, data, text, lr, chosen.batch_size, seed, limits, info)


def _known(source: Source, options: Mapping[str, Any]) -> dict[str, Any]:
    known = {**source.fetched, **source.chosen}
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of task {source.name}", option, [*known, *_LIMITS])
    return dict(options)


def _from_files(
    name: str, model: str | None, seed: int, limits: Mapping[str, int], options: Mapping[str, Any]
) -> Task:
    kind: FileKind
    kind, data = read_files(name, **options)
    text = model or (kind.model if kind.model != "cnn" or min(data.train.x.shape[1:3]) >= 8 else "mlp")
    plain, _ = parse_model(text)
    batch = {"text": 128}.get(kind.content, 20)
    info = {"source": name, "licence": "your own files"}
    return _task(name, data, text, _RATES.get(plain, _RATE), batch, seed, limits, info)


def _task(
    name: str,
    data: RawData,
    model: str,
    lr: float,
    batch_size: int,
    seed: int,
    limits: Mapping[str, int],
    info: dict[str, str],
) -> Task:
    assert data.test is not None  # every source has a test part, and files get one
    is_text = data.train.x.dtype == np.uint8 and data.train.x.ndim == 2
    train = _fewer(data.train, limits.get("max_train"), seed, "max_train")
    test = _fewer(data.test, limits.get("max_test"), seed, "max_test")
    scale = None if is_text else _scale(data.train.x)
    arrays = [_arrays(part, data.owners, scale) for part in (train, test)]
    plain, options = parse_model(model)
    if (plain.replace("-", "_") == "lstm") != is_text:
        raise ConfigError(f"model {plain!r} does not fit task {name!r}, whose inputs are {'text' if is_text else 'numbers'}")
    shape = tuple(arrays[0].x.shape[1:])
    buffers: Buffers = "average"
    return Task(
        name,
        arrays[0],
        arrays[1],
        partial(build, plain, shape=shape, num_classes=len(data.classes), **options),
        num_classes=len(data.classes),
        lr=lr,
        batch_size=batch_size,
        buffers=buffers,
        notes=f"{len(train):,} training and {len(test):,} test samples",
        info=info | {"model": model},
        classes=data.classes,
        in_time=is_text,
    )


def _fewer(part: Part, most: int | None, seed: int, stream: str) -> Part:
    if most is None or most >= len(part):
        return part
    rows = numpy_rng(seed, "subset", stream).permutation(len(part))[:most]
    return part.take(np.sort(rows))


def _scale(x: Array) -> tuple[Array, Array] | None:
    """Return mean and deviation of each channel of uint8 pictures on the scale 0..1; None for a table."""
    if x.dtype != np.uint8:
        return None
    pixels = x.reshape(len(x), -1, 3 if x.ndim == 4 else 1)
    levels = np.stack([np.bincount(pixels[..., c].reshape(-1), minlength=256) for c in range(pixels.shape[2])])
    share = levels / levels.sum(axis=1, keepdims=True)
    grey = np.arange(256) / 255
    mean = share @ grey
    deviation = np.sqrt((share * (grey - mean[:, None]) ** 2).sum(axis=1))
    return mean, np.where(deviation > 0, deviation, 1.0)


def _arrays(part: Part, owners: tuple[str, ...], scale: tuple[Array, Array] | None) -> Arrays:
    if scale is None:
        x = torch.from_numpy(np.ascontiguousarray(part.x))
    else:
        pictures = torch.from_numpy(np.ascontiguousarray(part.x))
        pictures = pictures.permute(0, 3, 1, 2) if pictures.dim() == 4 else pictures.unsqueeze(1)
        mean, deviation = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in scale)
        x = pictures.to(torch.float32, memory_format=torch.contiguous_format)
        x = x.div_(255).sub_(mean).div_(deviation)
    owner = None if part.owner is None else torch.from_numpy(part.owner)
    return Arrays(x, torch.from_numpy(part.y), owner, owners)
