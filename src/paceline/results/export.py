"""Export of a model for other programs: a state dict, a program of `torch.export`, or ONNX.

The exported program returns the scores of samples as the module takes them; the schema's scaling comes before it. Numbers are
in the unit of the target, unless the module's own are asked for. The program is run on samples, and what differs from the module
is an error.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from paceline.core.columns import call, positional
from paceline.core.errors import ConfigError, MissingExtraError, UnknownNameError
from paceline.core.losses import scores
from paceline.results.predictor import Predictor
from paceline.store.files import atomic_write

__all__ = ["ExportForm", "export", "place", "standardized"]

ExportForm = Literal["state-dict", "torch-export", "onnx"]

_ENDS = {"state-dict": ".pt", "torch-export": ".pt2", "onnx": ".onnx"}
_UNSCALED = (0.0, 1.0)
_CLOSE = 1e-4
"""Largest difference of scores, relative to the largest score."""


def place(to: str, path: str | Path | None, folder: Path | None, client: int | None = None) -> Path:
    """Return the file to write.

    Args:
        to: the form.
        path: the file, if given.
        folder: of the run, or None.
        client: whose own model it is.
    """
    if to not in _ENDS:
        raise UnknownNameError("form of export", to, get_args(ExportForm))
    if path is not None:
        return Path(path).expanduser()
    if folder is None:
        raise ConfigError("this run has no folder; name a file: path=...")
    return folder / f"model{'' if client is None else f'-client{client}'}{_ENDS[to]}"


def standardized(made: Predictor, to: ExportForm, raw: bool = False) -> tuple[float, float] | None:
    """Return mean and deviation of the target if what is exported gives standardised numbers; None if it does not.

    Args:
        made: the model.
        to: the form; a state dict holds the module's own weights, which give standardised numbers.
        raw: whether the module's own outputs are exported.
    """
    scaling = _scaling(made)
    return None if scaling == _UNSCALED or (to != "state-dict" and not raw) else scaling


def _scaling(made: Predictor) -> tuple[float, float]:
    return made.card.scaling if made.card.kind == "number" else _UNSCALED


def export(made: Predictor, to: ExportForm, path: Path, raw: bool = False) -> Path:
    """Write a model, run it on samples, and return its path.

    Args:
        made: the model.
        to: the form.
        path: the file.
        raw: leave numbers standardised, as the module gives them.

    Raises:
        MissingExtraError: a package for this form is not installed.
        ConfigError: the model cannot be exported, or the exported one differs.
    """
    if to == "state-dict":
        buffer = io.BytesIO()
        torch.save({name: value.detach().cpu().clone() for name, value in made.module.state_dict().items()}, buffer)
        atomic_write(path, buffer.getvalue())
        return path
    mean, deviation = _UNSCALED if raw else _scaling(made)
    module = _Scores(made.module.cpu().eval(), made.card.output, mean, deviation)
    three, five = (_samples(made.card.inputs, count, count) for count in (3, 5))
    try:
        with _quiet():
            content, again = (_onnx if to == "onnx" else _program)(module, three)
    except MissingExtraError:
        raise
    except Exception as error:  # torch.export raises many classes
        said = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{type(made.module).__name__} cannot be exported as {to}: {type(error).__name__}: {said}; the form state-dict always can"
        ) from error
    for samples in (three, five):
        with torch.no_grad():
            wanted = scores(call(made.module, samples), made.card.output)
        found = (again(samples) - mean) / deviation
        differs = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1.0)) if found.shape == wanted.shape else np.inf
        if not differs <= _CLOSE:
            raise ConfigError(
                f"the exported {to} gives other scores than the model (largest difference {differs:.2g} on {len(wanted)} samples); "
                "use the form state-dict"
            )
    atomic_write(path, content)
    return path


class _Scores(nn.Module):
    """A module that returns the scores alone, or numbers in the unit of the target, as float64."""

    def __init__(self, module: nn.Module, output: str | int | None, mean: float, deviation: float) -> None:
        super().__init__()
        self.module, self.output, self.mean, self.deviation = module, output, mean, deviation

    def forward(self, *given: Tensor) -> Tensor:
        """Return the scores."""
        found = scores(self.module(*given), self.output)
        return found if (self.mean, self.deviation) == _UNSCALED else found.double() * self.deviation + self.mean


def _program(module: _Scores, samples: Any) -> tuple[bytes, Any]:
    given = positional(module.module, samples)
    made = torch.export.export(module, given, dynamic_shapes=_dynamic(given))
    buffer = io.BytesIO()
    torch.export.save(made, buffer)
    buffer.seek(0)
    again = torch.export.load(buffer).module()
    return buffer.getvalue(), lambda samples: again(*positional(module.module, samples)).detach()


def _onnx(module: _Scores, samples: Any) -> tuple[bytes, Any]:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(error.name or "onnx", "onnx") from None
    given = positional(module.module, samples)
    named = positional(module.module, {name: name for name in samples}) if isinstance(samples, Mapping) else ()
    inputs = list(named) or [f"x{i or ''}" for i in range(len(given))]
    made = torch.onnx.export(
        module, given, input_names=inputs, output_names=["scores"], dynamic_shapes=_dynamic(given), dynamo=True, verbose=False
    )
    assert made is not None
    content = made.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    there = [each.name for each in session.get_inputs()]

    def run(samples: Any) -> Tensor:
        parts = dict(zip(inputs, positional(module.module, samples), strict=True))
        return torch.from_numpy(session.run(None, {name: parts[name].numpy() for name in there})[0])

    return content, run


def _dynamic(given: tuple[Any, ...]) -> dict[str, Any]:
    """Return the dynamic first dimension of each input of `_Scores`."""
    return {"given": tuple({0: torch.export.Dim.DYNAMIC} for _ in given)}


def _samples(form: Any, count: int, seed: int) -> Any:
    """Return random samples of the form that a card describes."""
    if form is None or "column" in form:
        raise ConfigError("the model takes samples of varying length, whose form is not fixed; use the form state-dict")
    if "dict" in form:
        return {name: _samples(part, count, seed + i) for i, (name, part) in enumerate(form["dict"].items())}
    if "tuple" in form:
        return tuple(_samples(part, count, seed + i) for i, part in enumerate(form["tuple"]))
    dtype, stream = getattr(torch, form["dtype"]), torch.Generator().manual_seed(seed)
    if "codes" in form:
        return torch.randint(form["codes"], (count, *form["shape"]), generator=stream).to(dtype)
    return torch.randn((count, *form["shape"]), generator=stream).to(dtype)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the notes of torch's exporters, which concern their developers."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    try:
        log.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)
