"""Tasks by name: a data set, a suitable reference model, and default hyperparameters.

A task is a data set fetched by `paceline data fetch` (``mnist-5k``), or local files (``kind:/path``). Nothing is
downloaded here, and data are read only by `load_task`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from paceline.core.errors import ConfigError, UnknownNameError
from paceline.core.random import numpy_rng
from paceline.core.task import Arrays, Task

if TYPE_CHECKING:
    from paceline.data.raw import Part, RawData
    from paceline.data.sources import Source

__all__ = ["load_task", "task_info", "task_names", "task_options", "task_source"]

Content = Literal["image", "text", "table"]


@dataclass(frozen=True)
class _Suits:
    """Settings for a named data set: content, reference model, batch size, and whether samples are ordered in time."""

    content: Content
    model: str
    batch_size: int
    in_time: bool = False


_TASKS = {
    "digits": _Suits("image", "mlp", 20),
    "mnist-5k": _Suits("image", "tiny_cnn", 20),
    "fashion-mnist": _Suits("image", "cnn", 20),
    "cifar10-test-split": _Suits("image", "vgg9", 20),
    "fontwriters": _Suits("image", "femnist_cnn", 10),
    "shakespeare": _Suits("text", "lstm", 128, in_time=True),
}
_BATCH: dict[Content, int] = {"image": 20, "text": 128, "table": 20}
_LR = {
    "logistic": 0.05,
    "mlp": 0.05,
    "tiny_cnn": 0.05,
    "cnn": 0.05,
    "femnist_cnn": 0.05,
    "vgg9": 0.05,
    "lstm": 1.0,
    "vit": 0.05,
}
_TEXT_MODELS = {"lstm"}


def task_names() -> list[str]:
    """Return the names of the tasks; local files are tasks as well, as ``kind:/path``."""
    from paceline.tasks.made import MADE

    return [*_TASKS, *MADE]


def task_source(name: str) -> Source | None:
    """Return the data that a task reads by default, or None if it needs none.

    Raises:
        UnknownNameError: unknown task.
    """
    from paceline.data.sources import find_source
    from paceline.tasks.made import MADE

    if name in MADE:
        return MADE[name].data
    _find(name)
    return find_source(name)


def task_info(name: str) -> str:
    """Return a one-line description of a task's data, reference model and licence; the data need not be available.

    Raises:
        UnknownNameError: unknown task.
    """
    from paceline.data.sources import find_source
    from paceline.tasks.made import MADE

    if name in MADE:
        return MADE[name].info()
    suits, source = _find(name), find_source(name)
    return f"{source.about}; model {suits.model}; {source.licence}"


def load_task(name: str, model: str | None = None, seed: int = 0, **options: Any) -> Task:
    """Read a task's data and select its model.

    Images become float32 [N, C, H, W], standardised per channel by mean and deviation of the training samples; text remains
    codes (uint8) [N, T]; a table remains as standardised by its reader.

    Args:
        name: see `task_names`, or ``kind:/path`` of local files.
        model: reference model to use instead of the task's own; it receives the data's shape and number of classes.
        seed: seed of the selection by `limit`; the split into train and test is fixed.
        options: options of the data or of the model, such as ``stride`` of shakespeare or ``norm`` of vgg9; ``limit``,
            the maximum number of training samples, drawn at random; and ``peft``, the part of the model to train, such as
            ``bias`` or ``lora:rank=8`` (see `parse_tuning`).

    Raises:
        UnknownNameError: unknown task, model or option.
        ConfigError: the model does not fit the data.
        MissingDataError: the data are not available; the message contains the command to run.
    """
    peft = options.pop("peft", None)
    if peft is not None:
        from paceline.tasks.tuning import parse_tuning, tune

        return tune(load_task(name, model, seed, **options), parse_tuning(peft))
    from paceline.data.files import is_file_task, read_files
    from paceline.data.sources import find_source
    from paceline.tasks.made import MADE

    if name in MADE:
        return MADE[name].load(name, model, seed, options)
    limit = options.pop("limit", None)
    if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
        raise ConfigError(f"limit={limit!r}; a whole number of at least 1 is needed")
    if is_file_task(name):
        for_model, for_data = _sort_options(options, model)
        kind, raw = read_files(name, **for_data)
        suits = _Suits(kind.content, kind.model, _BATCH[kind.content], kind.content == "text")
        about, model = kind.about, model or suits.model
    else:
        suits, source = _find(name), find_source(name)
        about, model = source.about, model or suits.model
        for_model, for_data = _sort_options(options, model)
        raw = source.load(**for_data)
    return _make(name, model, for_model, suits, raw, about, limit, seed)


def task_options(name: str, model: str | None = None) -> set[str]:
    """Return the options of `load_task` for a task and its model.

    Raises:
        UnknownNameError: unknown task or model.
    """
    from paceline.data.files import file_options, is_file_task
    from paceline.data.sources import find_source
    from paceline.models import model_options
    from paceline.tasks.made import MADE

    common = {"limit", "peft"} | set(model_options(model) if model is not None else ())
    if name in MADE:
        return common | MADE[name].options
    if is_file_task(name):
        return common | set(file_options(name))
    suits, source = _find(name), find_source(name)
    return common | set(model_options(model or suits.model)) | {*source.fetched, *source.chosen}


def _find(name: str) -> _Suits:
    if name not in _TASKS:
        raise UnknownNameError("task", name, task_names())
    return _TASKS[name]


def _sort_options(options: dict[str, Any], model: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of the model and those of the data; the default model of a local file takes none."""
    from paceline.models import model_options

    known = set(model_options(model)) if model is not None else set()
    for_model = {k: v for k, v in options.items() if k in known}
    return for_model, {k: v for k, v in options.items() if k not in known}


def _make(
    name: str,
    model: str,
    options: dict[str, Any],
    suits: _Suits,
    raw: RawData,
    about: str,
    limit: int | None,
    seed: int,
) -> Task:
    from paceline.models import build

    plain = model.replace("-", "_")
    assert raw.test is not None
    if (suits.content == "text") != (plain in _TEXT_MODELS):
        raise ConfigError(f"model {model} does not suit {name}, whose samples are {suits.content}s")
    train, test = raw.train, raw.test
    if limit is not None and limit < len(train):
        train = train.take(np.sort(numpy_rng(seed, "limit", name).permutation(len(train))[:limit]))
    x, x_test = _inputs(suits.content, train, test)
    make = partial(build, model, shape=tuple(x.shape[1:]), num_classes=len(raw.classes), **options)
    with torch.device("meta"):
        make()  # report a model that does not fit now instead of in the first round
    return Task(
        name=name,
        train=Arrays(x, torch.from_numpy(train.y), _owner(train), raw.owners),
        test=Arrays(x_test, torch.from_numpy(test.y), _owner(test), raw.owners),
        model=make,
        num_classes=len(raw.classes),
        lr=_LR.get(plain, 0.05),
        batch_size=suits.batch_size,
        notes=about,
        info={"model": plain},
        classes=raw.classes,
        in_time=suits.in_time and bool(raw.owners),
    )


def _owner(part: Part) -> Tensor | None:
    return None if part.owner is None else torch.from_numpy(part.owner)


def _inputs(content: Content, train: Part, test: Part) -> tuple[Tensor, Tensor]:
    """Return the inputs of both parts as tensors."""
    if content != "image":
        return torch.from_numpy(train.x), torch.from_numpy(test.x)
    x, x_test = _channels_first(train.x), _channels_first(test.x)
    deviation, mean = torch.std_mean(x.double(), dim=(0, 2, 3), keepdim=True, correction=0)
    shift, scale = mean.float(), deviation.clamp(min=1e-6).float()
    return x.sub_(shift).div_(scale), x_test.sub_(shift).div_(scale)


def _channels_first(images: Any) -> Tensor:
    x = torch.from_numpy(images)
    x = x.unsqueeze(1) if x.dim() == 3 else x.permute(0, 3, 1, 2)
    return x.float().div_(255).contiguous()
