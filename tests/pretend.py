"""GPUs that are not there: finds tensors on the wrong device, and synchronisations, on a machine without a GPU.

Tensors stay ordinary tensors of the CPU, so every value is real and autograd, ``torch.func.vmap`` and modules work as ever.
Their storages carry a label: ``tensor.to("cuda")``, and factories with ``device="cuda"``, label what they return, and an
operation on labelled tensors labels its results. A dispatch mode sees each operation, also within a backward pass and below
``vmap``, and applies torch's rule: all tensors on one device, except zero-dimensional ones of the CPU in pointwise operations,
copies, and indices. A violation is recorded and raises what CUDA would raise. What waits for the device is counted.

Memory that C++ allocates within an operation carries the label ``any``, which suits every device: no false alarms come from it.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["PretendCuda"]

CPU, ANY, PENDING = "cpu", "any", "pending"

_FACTORIES = [
    "arange",
    "bartlett_window",
    "blackman_window",
    "empty",
    "empty_like",
    "empty_strided",
    "eye",
    "full",
    "full_like",
    "hann_window",
    "linspace",
    "logspace",
    "normal",
    "ones",
    "ones_like",
    "rand",
    "rand_like",
    "randint",
    "randint_like",
    "randn",
    "randn_like",
    "randperm",
    "scalar_tensor",
    "tril_indices",
    "triu_indices",
    "zeros",
    "zeros_like",
]
_NEW = ["new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros"]
_COPIES = ("tensor", "as_tensor", "asarray")
"""Factories that copy values of the host to the device, and wait for that."""

_ACROSS = {"aten.copy_", "aten._copy_from", "aten.set_", "aten.is_same_size", "aten._has_same_storage_numel"}
"""Operations between devices."""

_INDICES = {
    "aten.index",
    "aten.index_put",
    "aten.index_put_",
    "aten._unsafe_index",
    "aten._index_put_impl_",
    "aten._unsafe_index_put",
}
"""Operations whose indices may be on the CPU; the first tensor decides."""

_FILLS = {"aten.fill_", "aten.fill", "aten.masked_fill", "aten.masked_fill_", "aten.index_fill", "aten.index_fill_"}
"""Operations that take a zero-dimensional value of the CPU without being marked as pointwise."""

_WAITS = {
    "aten._local_scalar_dense", "aten.is_nonzero", "aten.equal", "aten.nonzero", "aten.masked_select", "aten.bincount", "aten._unique2",
    "aten.unique_consecutive", "aten.unique_dim", "aten._linalg_check_errors", "aten.repeat_interleave", "aten.histc",
}  # fmt: skip
"""Operations for which the host waits until the device has their result, or its size."""


class PretendCuda(TorchDispatchMode):
    """Context in which torch seems to have GPUs.

    Args:
        count: number of GPUs.
        free: bytes that each has left.

    Example:
        >>> with PretendCuda() as gpu:
        ...     there = torch.ones(2, device="cuda")
        ...     try:
        ...         there + torch.ones(2)
        ...     except RuntimeError as error:
        ...         print(there.device, error)
        cuda:0 Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! (aten.add.Tensor)
    """

    def __init__(self, count: int = 1, free: int = 1 << 30) -> None:
        super().__init__()
        self.count, self.free, self.current = count, free, 0
        self.faults: list[str] = []
        """Violations: the operation, the devices and the line of Paceline that caused it; also where the error was handled."""
        self.waits: list[str] = []
        """Synchronisations: the operation, and the line of Paceline."""
        self.generators = tuple(torch.Generator() for _ in range(count))
        self._labels: dict[int, tuple[StorageWeakRef, str]] = {}
        self._patches: list[Any] = []
        self._explicit = 0

    # -- labels --------------------------------------------------------------------------------
    def label(self, tensor: Tensor) -> str:
        """Return where a tensor is: ``cpu``, ``cuda:N``, or ``any``."""
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        if tensor.layout is not torch.strided:
            return CPU
        found = self._labels.get(tensor.untyped_storage()._cdata)
        return CPU if found is None else found[1]

    def put(self, tensor: Any, label: str) -> Any:
        """Label the storage of a tensor."""
        if isinstance(tensor, Tensor) and tensor.layout is torch.strided:
            while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
                tensor = torch._C._functorch.get_unwrapped(tensor)
            storage = tensor.untyped_storage()
            if label == CPU:
                self._labels.pop(storage._cdata, None)
            else:  # the weak reference keeps the address from being used again
                self._labels[storage._cdata] = (StorageWeakRef(storage), label)
            if len(self._labels) > 20_000:
                self._labels = {key: held for key, held in self._labels.items() if not held[0].expired()}
        return tensor

    def named(self, device: Any) -> str:
        """Return the label of a device, as torch takes it."""
        device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if device.type != "cuda":
            return CPU
        index = self.current if device.index is None else device.index
        if index >= self.count:
            raise RuntimeError(f"CUDA error: invalid device ordinal {index}")
        return f"cuda:{index}"

    # -- what happens --------------------------------------------------------------------------
    def fault(self, text: str) -> RuntimeError:
        """Record a violation; return its error."""
        self.faults.append(f"{text} at {_place()}")
        return RuntimeError(text)

    def wait(self, what: str) -> None:
        """Record that the host waits for the device."""
        self.waits.append(f"{what} at {_place()}")

    def _synchronized(self) -> None:
        self.wait("synchronize")
        self._labels = {key: held for key, held in self._labels.items() if held[1] != PENDING}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Check an operation, run it, and label what it returns."""
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        labels = [self.label(tensor) for tensor in tensors]
        name = str(func._overloadpacket)
        where = self._common(func, name, tensors, labels, args)
        if where.startswith("cuda"):
            self._note(name, args, labels)
            source = kwargs.get("generator")
            if isinstance(source, torch.Generator) and all(source is not known for known in self.generators):
                raise self.fault(f"Expected a 'cuda' device type for generator but found 'cpu' ({func})")
        out = func(*args, **kwargs)
        if not tensors:
            where = CPU if self._explicit else ANY
        for leaf in tree_leaves(out):
            if where != CPU and isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                self._fresh(leaf, where, tensors)
        for tensor, label in zip(tensors, labels, strict=True):
            if label == ANY and where.startswith("cuda"):
                self.put(tensor, where)
        return out

    def _fresh(self, leaf: Tensor, where: str, tensors: list[Tensor]) -> None:
        """Label a result that has memory of its own."""
        storage = leaf.untyped_storage()._cdata
        if storage not in self._labels and all(
            t.layout is not torch.strided or t.untyped_storage()._cdata != storage for t in tensors
        ):
            self.put(leaf, where)

    def _common(self, func: Any, name: str, tensors: list[Tensor], labels: list[str], args: Any) -> str:
        """Return the device of an operation; raise where its tensors are on several."""
        if PENDING in labels:
            raise self.fault(f"a tensor is read while it is copied to the host ({func}); synchronize first")
        there = sorted({label for label in labels if label not in (CPU, ANY)})
        if not there:
            return CPU if CPU in labels else ANY if labels else CPU
        if name in _ACROSS:
            return labels[0]
        found = set(labels) - {ANY}
        if len(found) == 1:
            return there[0]
        if len(there) > 1:
            raise self.fault(_mixed(there, func))
        if name in _INDICES and labels[0] != CPU:
            values = [i for i in range(len(tensors)) if i == len(tensors) - 1 and "put" in name]
            if all(tensors[i].dim() == 0 or labels[i] != CPU for i in values):
                self.wait(f"{func}: indices on the CPU")
                return there[0]
        scalars = torch.Tag.pointwise in func.tags or name in _FILLS
        written = _written(func)
        for place, (tensor, label) in enumerate(zip(tensors, labels, strict=True)):
            if label == CPU and (tensor.dim() or not scalars or (place == 0 and written)):
                raise self.fault(_mixed([there[0], CPU], func))
        return there[0]

    def _note(self, name: str, args: Any, labels: list[str]) -> None:
        if name in _WAITS:
            self.wait(name)
        elif name in _INDICES and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1]):
            if not ("put" in name and args[2].numel() == 1):  # that is a masked fill
                self.wait(f"{name} of a mask")
        elif name == "aten.copy_" and CPU in labels and not (len(args) > 2 and args[2]):
            self.wait(name)

    # -- torch as it would be ------------------------------------------------------------------
    def __enter__(self) -> PretendCuda:
        """Begin to pretend."""
        for target, name, value in self._replacements():
            patch = mock.patch.object(target, name, value)
            patch.start()
            self._patches.append(patch)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """End it."""
        super().__exit__(*error)
        while self._patches:
            self._patches.pop().stop()

    def _replacements(self) -> Iterator[tuple[Any, str, Any]]:
        base = torch._C.TensorBase
        label, put, wait = self.label, self.put, self.wait
        yield Tensor, "device", property(lambda t: torch.device(CPU if (at := label(t)) in (ANY, PENDING) else at))
        yield Tensor, "is_cuda", property(lambda t: label(t).startswith("cuda"))
        yield Tensor, "is_cpu", property(lambda t: not label(t).startswith("cuda"))
        yield Tensor, "get_device", lambda t: t.device.index if t.is_cuda else -1
        yield Tensor, "pin_memory", lambda t, *_: t
        yield Tensor, "is_pinned", lambda t, *_: not t.is_cuda
        yield Tensor, "to", self._to(base.to)
        yield Tensor, "cpu", lambda t, *a, **k: t.to(CPU)
        yield Tensor, "cuda", lambda t, device=None, **k: t.to("cuda" if device is None else device)

        def numpy(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if label(tensor) not in (CPU, ANY):
                raise self.fault(f"can't convert {label(tensor)} device type tensor to numpy; use Tensor.cpu() first")
            return base.numpy(tensor, *args, **kwargs)

        def tolist(tensor: Tensor) -> Any:
            if label(tensor) == PENDING:
                raise self.fault("a tensor is read while it is copied to the host; synchronize first")
            if label(tensor).startswith("cuda"):
                wait("tolist")
            return base.tolist(tensor)

        copied, array = Tensor.__deepcopy__, Tensor.__array__

        def deepcopy(tensor: Tensor, memo: Any) -> Any:
            return put(copied(tensor, memo), label(tensor))

        def as_array(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if label(tensor).startswith("cuda"):
                raise self.fault(f"can't convert {label(tensor)} device type tensor to numpy; use Tensor.cpu() first")
            return array(tensor, *args, **kwargs)

        yield Tensor, "numpy", numpy
        yield Tensor, "tolist", tolist
        yield Tensor, "__deepcopy__", deepcopy
        yield Tensor, "__array__", as_array
        for name in _FACTORIES:
            yield torch, name, self._factory(getattr(torch, name), name.endswith("_like"), False)
        for name in _COPIES:
            yield torch, name, self._factory(getattr(torch, name), False, True)
        for name in _NEW:
            yield Tensor, name, self._factory(getattr(base, name), True, False)
        yield Tensor, "new_tensor", self._factory(base.new_tensor, True, True)
        cuda = torch.cuda
        for name, value in {
            "is_available": lambda: True,
            "is_initialized": lambda: True,
            "_lazy_init": lambda: None,
            "device_count": lambda: self.count,
            "current_device": lambda: self.current,
            "set_device": lambda device: setattr(self, "current", torch.device(device).index or 0),
            "synchronize": lambda device=None: self._synchronized(),
            "mem_get_info": lambda device=None: (self.free, 2 * self.free),
            "memory_reserved": lambda device=None: 0,
            "memory_allocated": lambda device=None: 0,
            "max_memory_allocated": lambda device=None: 0,
            "reset_peak_memory_stats": lambda device=None: None,
            "empty_cache": lambda: None,
            "is_bf16_supported": lambda *_: True,
            "get_device_name": lambda device=None: "pretended GPU",
            "get_rng_state_all": lambda: [g.get_state() for g in self.generators],
            "set_rng_state_all": lambda states: [g.set_state(s) for g, s in zip(self.generators, states, strict=True)],
            "Event": _Event,
            "current_stream": lambda device=None: None,
            "is_current_stream_capturing": lambda: False,
        }.items():
            yield cuda, name, value
        if hasattr(cuda, "default_generators"):
            yield cuda, "default_generators", self.generators
        yield torch.backends.cuda, "is_built", lambda: True

    def _to(self, real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            here, kept = self.label(tensor), list(args)
            there = None
            if kept and isinstance(kept[0], Tensor):
                there, kept[0] = self.label(kept[0]), kept[0].dtype
                there = here if there == ANY else there
            elif kept and isinstance(kept[0], str | torch.device | int):
                there = self.named(kept.pop(0))
            if "device" in kwargs and (given := kwargs.pop("device")) is not None:
                there = self.named(given)
            if "other" in kwargs:
                other = kwargs.pop("other")
                there, kept = self.label(other), [other.dtype, *kept]
            kept = [value for value in kept if value is not None]
            blocking = not kwargs.get("non_blocking")
            if kept and isinstance(kept[0], bool):  # (device, non_blocking) without a dtype
                kept = [tensor.dtype, *kept]
            blocking = blocking and not (len(kept) > 1 and kept[1])
            moved = real(tensor, *kept, **kwargs) if kept or kwargs else tensor
            if there is None or there == here or (here == ANY and there == CPU):
                return moved
            if blocking:
                self.wait(f"copy from {here} to {there}")
            elif there == CPU:
                there = PENDING
            if moved is tensor or moved.untyped_storage()._cdata == tensor.untyped_storage()._cdata:
                moved = moved.clone()
            return self.put(moved, there) if not torch._C._functorch.is_functorch_wrapped_tensor(moved) else moved

        return to

    def _factory(self, real: Callable[..., Any], like: bool, copies: bool) -> Callable[..., Any]:
        def make(*args: Any, **kwargs: Any) -> Any:
            given = kwargs.pop("device", None)
            there = None if given is None else self.named(given)
            source = args[0] if args and isinstance(args[0], Tensor) else None
            if like and there is None and source is not None:
                there = self.label(source)
            if there is not None and there.startswith("cuda"):
                chosen = kwargs.get("generator")
                if chosen is not None and all(chosen is not known for known in self.generators):
                    raise self.fault(f"Expected a 'cuda' device type for generator but found 'cpu' ({real.__name__})")
                if copies and not (source is not None and self.label(source) == there):
                    self.wait(f"{real.__name__} from the host")
            self._explicit += 1
            try:
                made = real(*args, **kwargs)
            finally:
                self._explicit -= 1
            if not isinstance(made, Tensor) or there is None:
                return made
            if source is not None and made.untyped_storage()._cdata == source.untyped_storage()._cdata:
                if there == self.label(source):
                    return made
                made = made.clone()
            self.put(made, there)
            return made

        return make


class _Event:
    """An event of a stream, on the host's clock."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.at = 0.0

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        return None

    def elapsed_time(self, other: _Event) -> float:
        return 1e3 * (other.at - self.at)


def _written(func: Any) -> bool:
    """Return whether an operation writes its first argument."""
    arguments = func._schema.arguments
    return bool(arguments and arguments[0].alias_info is not None and arguments[0].alias_info.is_write)


def _mixed(devices: list[str], func: Any) -> str:
    return f"Expected all tensors to be on the same device, but found at least two devices, {devices[0]} and {devices[1]}! ({func})"


def _place() -> str:
    """Return the innermost line outside torch and this file."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and frame.filename != __file__ and "/unittest/" not in frame.filename:
            return f"{'/'.join(frame.filename.split('/')[-3:])}:{frame.lineno} ({frame.name})"
    return "?"


@contextmanager
def pretended(count: int = 1) -> Iterator[PretendCuda]:
    """Return GPUs of which no tensor is on the wrong one: raise `AssertionError` at the end if one was."""
    with PretendCuda(count) as gpu:
        yield gpu
    assert not gpu.faults, "\n".join(gpu.faults)
