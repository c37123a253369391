"""A client's own model, kept at the client: as it was evaluated last, with what is needed to predict from the site's files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paceline.core.evaluation import Evaluation
from paceline.results.card import Card
from paceline.results.model import own_module
from paceline.store.weights import save_weights

if TYPE_CHECKING:
    from paceline.core.config import RunConfig
    from paceline.tasks import Task

__all__ = ["OwnModel"]


class OwnModel:
    """Keeps a client's model in a folder whenever the run evaluates the clients' own models.

    Args:
        folder: the folder; created when there is a model.
        config: the run.
        task: its task, as the method has fitted it.
        client: number of the client.
    """

    def __init__(self, folder: Path, config: RunConfig, task: Task, client: int) -> None:
        self.folder, self.card = folder, Card.of(task, config, client=client)

    def watch(self, function: str, ask: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return how the requests of a client function are answered: as by `ask`, and what is evaluated is kept."""
        if function != "evaluate_clients":
            return ask

        def answered(request: Any) -> Any:
            reply = ask(request)
            if isinstance(request, Evaluation):
                self._save(request)
            return reply

        return answered

    def _save(self, request: Evaluation) -> None:
        card, module = self.card, own_module(request)
        if request.outputs is not None:  # scores that the module alone does not give
            card = card.model_copy(update={"module": None, "reason": f"{card.method} scores by more than the module"})
        save_weights(self.folder / "model.safetensors", module.state_dict())
        card.write(self.folder)
