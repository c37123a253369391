"""Tensors between the host and a device: uploads that the host does not wait for, and downloads that wait once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paceline.core.tree import Tree, flatten, unflatten

__all__ = ["download", "free_memory", "on_host", "upload"]

_PINNED = 1 << 16
"""Bytes above which an upload needs page-locked memory to run in the background; the driver buffers smaller ones."""


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on a device; the tensor itself if it is there.

    The host does not wait until a GPU has received it. Operations on that GPU that follow see the values.

    Example:
        >>> upload(torch.ones(2), "cpu")
        tensor([1., 1.])
    """
    device = torch.device(device)
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    if tensor.nbytes > _PINNED:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def download(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors on the host; it waits once for all of them.

    Example:
        >>> download([torch.ones(2)])
        [tensor([1., 1.])]
    """
    devices = {tensor.device for tensor in tensors}
    moved = [tensor.to("cpu", non_blocking=tensor.device.type == "cuda") for tensor in tensors]
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return moved


def on_host(tree: Tree) -> Tree:
    """Return a tree with all tensors on the host; it waits once. The tree itself if they are there."""
    structure, leaves = flatten(tree)
    return tree if all(leaf.device.type == "cpu" for leaf in leaves) else unflatten(structure, download(leaves))


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that this process can still allocate on a GPU, with what torch has cached; None for other devices."""
    if device.type != "cuda":
        return None
    free: int = torch.cuda.mem_get_info(device)[0]
    return free + int(torch.cuda.memory_reserved(device)) - int(torch.cuda.memory_allocated(device))
