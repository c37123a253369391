"""Tensors of a model by name, from a run's folder, a safetensors file or a file of a state dict."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from paceline.core.errors import LayoutError, StoreError
from paceline.store.files import atomic_write

__all__ = ["check_names", "read_weights", "save_weights", "weights_digest"]

_NESTED = ("state_dict", "model_state_dict", "model")
"""Entries of a checkpoint under which other programs store a state dict."""


def read_weights(place: str | Path) -> dict[str, Tensor]:
    """Return a model's tensors by name, on the CPU; nothing is unpickled but tensors.

    Args:
        place: folder of a run, a ``.safetensors`` file, or a file that ``torch.save(module.state_dict(), file)`` has written.

    Raises:
        StoreError: there is no such file, or it has no tensors.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        file = path / "model.safetensors"
        if not file.is_file():
            ended = "has no model.safetensors; the run may not have ended" if (path / "config.toml").is_file() else "is no run"
            raise StoreError(f"{path} {ended}; name a run that has ended, or a file of weights")
        path = file
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist; name a run, a .safetensors file or a file of a state dict") from None
    except Exception as error:  # of a damaged or foreign file, of many classes
        said = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise StoreError(
            f"{path} cannot be read as weights ({said}); write them with torch.save(module.state_dict(), file) or as safetensors"
        ) from error
    return _tensors(path, found)


def _tensors(path: Path, found: Any) -> dict[str, Tensor]:
    if isinstance(found, Mapping):
        for name in _NESTED:
            if isinstance(found.get(name), Mapping):
                found = found[name]
        if found and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()):
            return {name: value.detach() for name, value in found.items()}
    raise StoreError(f"{path} contains a {type(found).__name__} that is no state dict; write module.state_dict() there")


def save_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors; tensors that share memory, such as tied weights, are each written."""
    separate = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    atomic_write(path, safetensors.torch.save(separate))


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, types, shapes and values, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def check_names(module: nn.Module, tensors: Mapping[str, Tensor], where: str, what: str) -> None:
    """Raise `LayoutError` with every difference between a module's tensors and others, in names and shapes.

    Counters (integer buffers) may be missing: other programs leave them out.

    Args:
        module: the module.
        tensors: tensors to load into it.
        where: their origin, for the message.
        what: name of the module, for the message.
    """
    own = module.state_dict()
    missing = [name for name, value in own.items() if name not in tensors and value.is_floating_point()]
    unknown = [name for name in tensors if name not in own]
    other = [
        f"{name} is {list(tensors[name].shape)} there, but {list(value.shape)} in the model"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    faults = [
        *([f"missing there: {_some(missing)}"] if missing else []),
        *([f"unknown to the model: {_some(unknown)}"] if unknown else []),
        *other[:6],
        *([f"{len(other) - 6} more of another shape"] if len(other) > 6 else []),
    ]
    if faults:
        raise LayoutError(f"{where} does not match the model of {what}: {'; '.join(faults)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
