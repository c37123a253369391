"""Connection to a Ray cluster with timeouts, and encoding of the messages between its processes."""

from __future__ import annotations

import functools
import importlib
import io
import logging
import math
import os
import pickle
import socket
import subprocess
import sys
from typing import Any

import numpy as np

from paceline.core.address import Address
from paceline.core.errors import EngineError, MissingExtraError
from paceline.engines.pipes import reduce_tensor

__all__ = ["connect", "pack", "unpack"]

Packed = tuple[bytes, list[Any]]
"""A message without its large parts, and these as byte arrays, which Ray shares with readers without a copy."""

_LEAST = 1 << 12
"""Size in bytes from which a part is large."""

_QUIET = {"log_to_driver": False, "logging_level": logging.ERROR}

_PROBE = """
import logging, sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def connect(address: str | None, cpus: float, patience: float) -> tuple[Any, bool]:
    """Return the connected module `ray`, and whether the connection was made here.

    A process that already uses Ray stays in its cluster.

    Args:
        address: running cluster, ``host:port`` or ``auto``; None starts one on this machine.
        cpus: minimum number of CPUs of a cluster started here.
        patience: seconds to wait for an answer.

    Raises:
        MissingExtraError: Ray is not installed.
        EngineError: the cluster does not answer.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    # actors without a GPU request may share the GPUs of this machine, like worker processes
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray: Any = importlib.import_module("ray")  # untyped and optional
    except ImportError as error:
        raise MissingExtraError("Ray", "ray") from error
    if ray.is_initialized():
        return ray, False
    options: dict[str, Any]
    if address is None:
        options = {"num_cpus": max(math.ceil(cpus), os.cpu_count() or 1), "include_dashboard": False, **_QUIET}
    else:
        _reach(address, patience)
        options = {"address": address, **_QUIET}
    try:
        ray.init(**options)
    except Exception as error:
        raise EngineError(f"cannot connect to the Ray cluster {address or 'on this machine'}: {_line(error)}") from error
    return ray, True


def _reach(address: str, patience: float) -> None:
    """Check that a cluster answers; Ray itself would retry for minutes and then end the process."""
    if address != "auto":
        where = Address.parse(address, "ray_address, which is host:port or auto,")
        try:
            socket.create_connection((where.host, where.port), timeout=min(patience, 10.0)).close()
        except OSError as error:
            raise EngineError(f"no Ray cluster answers at {address}: {error}; start one with: ray start --head") from error
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE, address], capture_output=True, text=True, timeout=patience, check=False
        )
    except subprocess.TimeoutExpired:
        raise EngineError(
            f"what answers at {address} did not let a Ray client in within {patience:g} s; is it the cluster's --port (6379 "
            f"unless told otherwise), and of the same Ray version?"
        ) from None
    if probe.returncode:
        raise EngineError(f"the Ray cluster {address} cannot be used: {_line(probe.stderr) or 'it ended the connection'}")


def _line(text: object) -> str:
    """Return the last 400 characters of a text on one line."""
    return " ".join(str(text).split())[-400:]


def pack(message: Any) -> Packed:
    """Pickle a message for another process of the cluster; classes of a script are included."""
    arrays: list[Any] = []

    def take(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < _LEAST:
            return True  # stays in the header
        arrays.append(np.frombuffer(raw, np.uint8))
        return False

    header = io.BytesIO()
    _pickler()(header, protocol=5, buffer_callback=take).dump(message)
    return header.getvalue(), arrays


@functools.cache
def _pickler() -> Any:
    base: Any = importlib.import_module("ray.cloudpickle").Pickler

    class Pickler(base):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            found = reduce_tensor(obj)
            return super().reducer_override(obj) if found is NotImplemented else found

    return Pickler


def unpack(packed: Packed) -> Any:
    """Restore a message packed by `pack`, in writable memory."""
    header, arrays = packed
    return pickle.loads(header, buffers=[bytearray(memoryview(array)) for array in arrays])
