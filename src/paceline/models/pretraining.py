"""Central training required by tasks before a federation starts: pretrained models, and classifiers to attack."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from paceline.core.layout import Layout
from paceline.core.optimizers import AdamW
from paceline.core.params import Resident
from paceline.core.random import torch_rng
from paceline.data.cache import cache_folder
from paceline.models.split import head_name

__all__ = ["kept", "pretrain", "with_weights"]


def pretrain(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int,
    lr: float = 1e-3,
    batch_size: int = 32,
    seed: int = 0,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> float:
    """Train a module with Adam in place and return the mean loss of the last epoch; the module ends in evaluation mode.

    Args:
        module: module to train.
        x, y: all samples.
        epochs: passes over them.
        lr, batch_size: of Adam.
        seed: seed of the order, and of the module's own random draws.
        loss: mean loss of (outputs, targets).
    """
    model = Resident(module, Layout.of(module, buffers="local"))
    weights, rule, order = model.params.vector, AdamW(), torch_rng(seed, "pretrain")
    moments, step, last = rule.state(weights), 0, 0.0
    module.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(epochs):
            losses = []
            for rows in torch.split(torch.randperm(len(x), generator=order), batch_size):
                model.clear()
                value = loss(module(x[rows]), y[rows])
                value.backward()  # type: ignore[no-untyped-call]
                with torch.no_grad():
                    weights -= lr * rule.direction(step, model.collect().vector, weights, moments)
                step += 1
                losses.append(value.detach())
            last = float(torch.stack(losses).mean())
    module.eval()
    return last


def kept(key: str, make: Callable[[], nn.Module], train: Callable[[nn.Module], object], seed: int = 0) -> dict[str, Tensor]:
    """Return the weights of a module that is trained once per machine: from the cache, or trained now.

    Args:
        key: everything that determines the result, as text; the file name is its hash.
        make: builds the untrained module.
        train: trains it in place.
        seed: seed of the initial weights.
    """
    path = cache_folder() / "models" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
    if path.exists():
        found: dict[str, Tensor] = load_file(path)
        return found
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums depend on it bitwise
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = make()
        train(module)
    finally:
        torch.set_num_threads(threads)
    state = {name: tensor.detach().clone().contiguous() for name, tensor in module.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(save(state, {"key": key}))
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)  # atomic, even if another process trains the same model
    return state


def with_weights(model: Callable[[], nn.Module], weights: Mapping[str, Tensor], new_head: bool = True) -> nn.Module:
    """Build a module with the given weights: all of them, or all except those of its head, which is freshly initialised."""
    module = model()
    drawn = f"{head_name(module)}." if new_head else None
    wanted = {n: w for n, w in weights.items() if drawn is None or not n.startswith(drawn)}
    module.load_state_dict(wanted, strict=not new_head)
    return module
