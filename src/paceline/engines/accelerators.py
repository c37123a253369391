"""Availability of torch devices, checked before anything is loaded; which GPU a worker uses, and how its process is started."""

from __future__ import annotations

import torch

from paceline.core.errors import ConfigError
from paceline.core.processes import start_method

__all__ = ["check_device", "device_of", "worker_start"]

_KNOWN = "cpu, cuda, cuda:N or mps"


def check_device(name: str, option: str, here: bool = True) -> None:
    """Raise `ConfigError` with advice if torch cannot use a device.

    Args:
        name: name of the device, such as ``cuda:0``.
        option: option in which it was given, for the message.
        here: whether the device will be used on this machine; otherwise only its name is checked.

    Raises:
        ConfigError: the name is unknown, or the device is not available.

    Example:
        >>> check_device("cpu", "--device")
    """
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError):
        raise ConfigError(f"{option}: {name!r} is not a torch device; write {_KNOWN}") from None
    reason = _missing(device) if here else ""
    if reason:
        raise ConfigError(f"{option}: device {name!r} is not available: {reason}")


def _missing(device: torch.device) -> str:
    """Return why a device is not available, and what to do; empty if it is."""
    number = device.index or 0
    match device.type:
        case "cpu":
            return ""
        case "cuda":
            if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
                return "torch was built without CUDA; use cpu, or install a CUDA build of torch"
            count = torch.cuda.device_count()
            if not count:
                return "no CUDA device is visible; use cpu, or check nvidia-smi, the driver and CUDA_VISIBLE_DEVICES"
            last = "only cuda:0 exists" if count == 1 else f"cuda:0 to cuda:{count - 1} exist"
            return f"{last}; choose an existing one" if number >= count else ""
        case "mps":
            if not torch.backends.mps.is_built():
                return "torch was built without MPS (Apple GPUs); use cpu"
            return "" if torch.backends.mps.is_available() else "no MPS device is visible (macOS 12.3 or later is needed); use cpu"
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        return f"{str(error).splitlines()[0]}; use {_KNOWN}"
    return ""


def device_of(name: str, worker: int) -> str:
    """Return the device of a worker: the GPUs in turn for ``cuda``, so that each has one or shares one; any other name as it is.

    Args:
        name: device of the run.
        worker: number of the worker, from 0.

    Example:
        >>> device_of("cuda:1", 2), device_of("cpu", 2)
        ('cuda:1', 'cpu')
    """
    return f"cuda:{worker % max(torch.cuda.device_count(), 1)}" if name == "cuda" else name


def worker_start(name: str) -> str:
    """Return the start method of worker processes: new processes for GPUs and where CUDA is in use, which does not survive a fork.

    Args:
        name: device of the run.
    """
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return start_method("fork" if in_use or torch.device(name).type == "cuda" else "")
