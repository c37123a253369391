"""The outcome of a run: its figures, the records of its rounds, and its model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.core.errors import ConfigError
from paceline.core.importing import import_extra
from paceline.results.display import bytes_text, score_text, seconds_text

if TYPE_CHECKING:
    from torch import Tensor, nn

    from paceline.core.config import RunConfig
    from paceline.core.params import Params
    from paceline.results.export import ExportForm
    from paceline.results.model import FinalModel
    from paceline.results.prediction import Prediction
    from paceline.results.predictor import Predictor
    from paceline.store import RunFolder

__all__ = ["Result"]

_NOT_FIGURES = {"history", "config", "final"}
_OF_ROUNDS = frozenset(
    {
        "round",
        "virtual_seconds",
        "round_seconds",
        "bytes_up",
        "bytes_down",
        "compute_seconds",
        "network_seconds",
        "evaluation_seconds",
        "wall_seconds",
        "dropped",
        "attempts",
        "skipped",
        "excluded",
        "lost",
        "unevaluated",
        "metric",
    }
)
"""Entries of a round's record that are no figures of the model."""


@dataclass(repr=False)
class Result:
    """The outcome of a run, as `paceline.run`, `resume` and `load` return it.

    Args:
        run: the run's folder, or an empty string.
        method, task, seed: what was run.
        rounds: rounds that were carried out.
        accuracy, loss: of the last evaluation; NaN where there was none.
        metric, score: name of the primary metric's figure, and its value at the last evaluation.
        higher_is_better, in_percent: whether a larger score is better, and whether it is shown in percent.
        round_seconds, total_seconds: virtual seconds of a round without its evaluation (mean), and of all with it.
        wall_seconds: seconds on this machine.
        bytes_up, bytes_down: bytes from and to all clients.
        model_sha256: SHA-256 of the final parameters' float32 bytes.
        target_seconds: virtual seconds until the target was reached, or None.
        stopped: why the run ended.
        chunk: clients that trained as one stacked computation.
        path: why they did.
        spent: wall time by section, of this process (``here``) and of all workers.
        history: a dict for each round: ``round``, ``virtual_seconds`` at its end, ``round_seconds``, ``bytes_up``,
            ``bytes_down``, ``accuracy``, ``loss`` and the figures of metrics where it was evaluated, and ``evaluation_seconds``
            where clients did that.
        config: the run's configuration.
        final: makes the models; see `model`.

    Example:
        >>> import paceline as pl
        >>> from paceline.tasks import blobs
        >>> result = pl.run("fedavg", blobs(), clients=4, rounds=2)
        >>> len(result.history), result.accuracy == result.history[-1]["accuracy"], type(result.model()).__name__
        (2, True, 'Sequential')
    """

    run: str
    method: str
    task: str
    rounds: int
    seed: int
    accuracy: float
    loss: float
    round_seconds: float
    total_seconds: float
    wall_seconds: float
    bytes_up: int
    bytes_down: int
    model_sha256: str
    target_seconds: float | None = None
    stopped: str = "all rounds"
    chunk: int = 1
    path: str = ""
    metric: str = "accuracy"
    score: float = math.nan
    higher_is_better: bool = True
    in_percent: bool = True
    spent: dict[str, dict[str, float]] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    config: RunConfig | None = None
    final: FinalModel | None = field(default=None, compare=False)

    @property
    def seconds(self) -> float:
        """Virtual seconds of all rounds."""
        return self.total_seconds

    @property
    def bytes(self) -> int:
        """Bytes sent in both directions, of all clients and rounds."""
        return self.bytes_up + self.bytes_down

    @property
    def figures(self) -> dict[str, float]:
        """All figures of the last evaluation, by name: loss, accuracies, and those of the metrics."""
        last: dict[str, Any] = next((record for record in reversed(self.history) if "loss" in record), {})
        return {name: value for name, value in last.items() if name not in _OF_ROUNDS and not name.startswith("note_")}

    @property
    def folder(self) -> Path | None:
        """The run's folder; None where nothing was kept."""
        return Path(self.run) if self.run else None

    @property
    def params(self) -> Params:
        """The final parameters: one vector with named views."""
        return self._final.params()

    def model(self, client: int | None = None) -> nn.Module:
        """Return the final model as a module of its own, in evaluation mode, on the CPU.

        Args:
            client: for this client's own model, as it was evaluated, where the method personalises models.

        Raises `ConfigError` where there is no such model: a method without a global one, a client that does not exist, or
        that is on another machine.

        Example:
            >>> import paceline as pl
            >>> from paceline.tasks import blobs
            >>> result = pl.run("fedavg", blobs(), clients=4, rounds=1)
            >>> bool(result.model()(blobs().test.x).argmax(1).eq(blobs().test.y).float().mean() == result.accuracy)
            True
        """
        return self._final.whole() if client is None else self._final.personal(client)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors of `model`, for ``load_state_dict``."""
        return dict(self.model().state_dict())

    def predict(
        self, data: Any, *, client: int | None = None, columns: Mapping[str, str] | None = None, **reading: Any
    ) -> Prediction:
        """Predict from raw data: read by the run's schema, scaled as in training, passed through the final model.

        Args:
            data: a file or folder; rows, as a data frame, a list of dicts or a dict of columns; texts or paths of pictures, in
                a list; pictures as an array of whole numbers; or tensors as the model takes them.
            client: predict with this client's own model, where the method personalises models.
            columns: the schema's name of a column, by the data's own.
            reading: options of how cells are read, such as ``na="N/A"``; by default those of the run.

        Returns:
            names, codes and scores of classes, or numbers, of each sample.

        Raises:
            SchemaError: columns are missing, or samples have another form; lists all differences.
            DataFormatError: the data cannot be read, or the model does not take them.
            ConfigError: there is no such model, see `model`.

        Example:
            >>> import paceline as pl
            >>> from paceline.tasks import blobs
            >>> made = pl.run("fedavg", blobs(), clients=4, rounds=2).predict(blobs().test.x)
            >>> len(made), len(made.labels), made.scores.shape[1]
            (80, 80, 4)
        """
        return self.predictor(client).predict(data, columns=columns, **reading)

    def predictor(self, client: int | None = None) -> Predictor:
        """Return the final model with its schema and classes, for many calls of `predict`.

        Args:
            client: for this client's own model, where the method personalises models.
        """
        return self._final.predictor(client, self.run or "the model")

    def export(self, to: ExportForm, path: str | Path | None = None, *, client: int | None = None, raw: bool = False) -> Path:
        """Write the final model in a form that other programs read, and compare its outputs with the model's.

        Args:
            to: ``state-dict``, ``torch-export`` or ``onnx``.
            path: the file; by default in the run's folder.
            client: export this client's own model, where the method personalises models.
            raw: leave numbers standardised, as the module gives them; by default programs give them in the unit of the target.

        Returns:
            the path of the file.

        Raises:
            MissingExtraError: a package for this form is not installed.
            ConfigError: the model cannot be exported, or there is no such model.
        """
        from paceline.results.export import export, place

        return export(self.predictor(client), to, place(to, path, self.folder, client), raw)

    def to_pandas(self) -> Any:
        """Return the history as a data frame, a row for each round.

        Raises:
            MissingExtraError: pandas is not installed.

        Example:
            >>> import paceline as pl
            >>> from paceline.tasks import blobs
            >>> frame = pl.run("fedavg", blobs(), clients=4, rounds=2).to_pandas()
            >>> list(frame["round"])
            [1, 2]
        """
        return import_extra("pandas", "pandas").DataFrame(self.history)

    @property
    def _final(self) -> FinalModel:
        if self.final is None:
            raise ConfigError(f"this result has no model; load it from its folder: paceline.load({self.run or 'folder'!r})")
        return self.final

    @staticmethod
    def read(folder: RunFolder, final: FinalModel | None = None) -> Result | None:
        """Return the result that a run has left in its folder; None while the run has not ended."""
        from paceline.core.config import RunConfig

        saved = folder.read_summary()
        if saved is None:
            return None
        saved.setdefault("score", saved.get("accuracy"))  # of a folder from before there were other metrics
        saved |= {name: math.nan for name in ("accuracy", "loss", "score") if saved.get(name) is None} | {"run": str(folder.path)}
        return Result(**saved, history=folder.read_metrics(), config=RunConfig.build(folder.read_config()), final=final)

    def as_dict(self) -> dict[str, Any]:
        """Return all figures, without history, configuration and model: what ``--json`` prints."""
        return {name: value for name, value in self.__dict__.items() if name not in _NOT_FIGURES}

    def __repr__(self) -> str:
        parts = [
            f"{self.metric} {score_text(self.score, self.in_percent)}",
            f"loss {self.loss:.4f}",
            f"{self.rounds} rounds",
            f"{seconds_text(self.seconds)} virtual",
            bytes_text(self.bytes),
        ]
        return f"<{self.method} on {self.task}, seed {self.seed}: {', '.join(parts)}>"
