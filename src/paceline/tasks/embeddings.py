"""Embeddings of a task's samples by a network that is trained for the task: the input of its last layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paceline.core.errors import ConfigError
from paceline.core.fingerprint import digest
from paceline.core.task import Task
from paceline.data.embedding import network_digest
from paceline.models.pretraining import kept, pretrain
from paceline.models.split import penultimate

__all__ = ["network"]

_HELD, _EPOCHS, _BATCH = 100, 10, 500


def network(task: Task, epochs: int = _EPOCHS, lr: float = 1e-3) -> Tensor:
    """Return the embeddings psi(x) of a task's training samples, shape [N, d], float32.

    The task's model is trained with Adam on all training samples but 100, once on this machine. Federated training on the same
    samples that begins from its weights would be a leak.

    Args:
        task: one tensor of inputs and one of targets.
        epochs: passes over the samples.
        lr: of Adam.

    Raises:
        ConfigError: the samples are not two tensors.
        NonFiniteError: see `paceline.core.training`.
    """
    x, y = task.train.tensors("partition embedding with by=network")
    used = max(len(x) - _HELD, min(len(x), _HELD))

    def fit(module: nn.Module) -> float:
        return pretrain(module, x[:used], y[:used], epochs=epochs, lr=lr, loss=task.loss)

    key = f"embedding {digest(x, y, network_digest(task))} {epochs} {lr}"
    module = task.build(0)
    module.load_state_dict(kept(key, lambda: task.build(0), fit))
    with torch.no_grad():
        found = torch.cat([penultimate(module.eval(), part).flatten(1) for part in torch.split(x, _BATCH)])
    if not bool(torch.isfinite(found).all()):
        raise ConfigError(f"the network of task {task.name!r} diverged when it was trained for embeddings; use by=inputs")
    return found
