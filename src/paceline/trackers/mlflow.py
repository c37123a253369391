"""Runs in MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paceline.core.importing import import_extra
from paceline.trackers.base import Tracker, flat

__all__ = ["MLflow"]

_LONGEST = 500
"""Largest length of a parameter that all of MLflow's stores accept."""


class MLflow(Tracker):
    """Writes a run's configuration as parameters and its figures as metrics by round.

    Args:
        place: tracking URI, such as ``sqlite:///mlflow.db`` or a server's address; MLflow's own default if empty.
        experiment: name of the experiment.

    Raises:
        MissingExtraError: the extra ``mlflow`` is not installed.
    """

    def __init__(self, place: str = "", experiment: str = "paceline") -> None:
        self._client: Any = import_extra("mlflow.tracking", "mlflow").MlflowClient(place or None)
        self.experiment = experiment
        self._run = ""

    def begin(self, name: str, config: Mapping[str, Any]) -> None:
        """Create the run."""
        found = self._client.get_experiment_by_name(self.experiment)
        number = self._client.create_experiment(self.experiment) if found is None else found.experiment_id
        self._run = self._client.create_run(number, run_name=name).info.run_id
        for key, value in flat(config).items():
            self._client.log_param(self._run, key, str(value)[:_LONGEST])

    def log(self, round: int, figures: Mapping[str, float]) -> None:
        """Write the metrics of a round."""
        for key, value in figures.items():
            self._client.log_metric(self._run, key, value, step=round)

    def end(self, outcome: Mapping[str, Any] | None) -> None:
        """Write how the run ended and close it."""
        for key in ("model_sha256", "stopped", "run"):
            if outcome is not None and outcome.get(key):
                self._client.set_tag(self._run, f"paceline.{key}", outcome[key])
        self._client.set_terminated(self._run, "FAILED" if outcome is None else "FINISHED")
