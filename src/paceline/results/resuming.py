"""Resume a run from its checkpoint, and extend one by further rounds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paceline.core.config import RunConfig
from paceline.core.errors import CheckpointError, ConfigError
from paceline.core.method import Method
from paceline.core.wording import setting
from paceline.results.saved import saved_method
from paceline.store import RunFolder
from paceline.store.provenance import compare

if TYPE_CHECKING:
    from paceline.runner import Run

__all__ = ["extend", "restore"]


def extend(folder: RunFolder, rounds: int, method: Method | None = None) -> None:
    """Set a larger number of rounds in the configuration of a kept run; resume it afterwards.

    Args:
        folder: of the run; held.
        rounds: number of rounds in total.
        method: the run's method, where it cannot be found by name.

    Raises:
        ConfigError: the run cannot be extended, or has as many rounds.
    """
    config = RunConfig.build(folder.read_config())
    if rounds == config.rounds:
        return
    if rounds < config.rounds:
        raise ConfigError(
            f"{folder.path} has {config.rounds} rounds; {setting('rounds', rounds)} is the total after the extension, so set more"
        )
    if config.engine == "grpc":
        raise ConfigError(
            f"{folder.path} is the run of a federation, whose clients have agreed to {config.rounds} rounds; start a new one from "
            f"its model with {setting('start_from', str(folder.path))}"
        )
    method = method or saved_method(folder, config)
    if method.fixed_rounds:
        raise ConfigError(
            f"{folder.path}: the rounds of {config.method!r} depend on their total number, so another total is another run; start a "
            f"new one, or go on from its model with {setting('start_from', str(folder.path))}"
        )
    folder.write_config({**folder.read_config(), "rounds": rounds})
    (folder.path / "summary.json").unlink(missing_ok=True)


def restore(prepared: Run, saved: dict[str, Any]) -> None:
    """Put a run into the state of its checkpoint.

    Raises:
        CheckpointError: the checkpoint is of another configuration, or of other data.
    """
    folder, store = prepared.folder, prepared.store
    assert folder is not None
    before = RunConfig.model_validate_json(saved["config"])
    extended = before.rounds < prepared.config.rounds
    if before.model_copy(update={"rounds": max(before.rounds, prepared.config.rounds)}) != prepared.config:
        raise CheckpointError(f"{folder.path}: the checkpoint does not belong to config.toml; restore both, or start a new run")
    compare(saved.get("provenance"), prepared.provenance, str(folder.checkpoint))
    prepared.round, prepared.state = saved["round"], saved["state"]
    clock, sent = saved["clock"], saved["bytes"]
    prepared.history = folder.truncate_metrics(prepared.round)
    if extended and (plain := saved.get("unevaluated")) is not None:  # a longer run does not evaluate in this round
        clock, sent = plain["clock"], plain["bytes"]
        wall = prepared.history[-1]["wall_seconds"]
        prepared.history = [*folder.truncate_metrics(prepared.round - 1), plain["record"] | {"wall_seconds": wall}]
        folder.append_metrics(prepared.history[-1])
    prepared.fed.clock.now = clock
    prepared.fed.totals.bytes_up, prepared.fed.totals.bytes_down = sent
    prepared.fed.engine.restore(store.restore(saved["memory"]))
