"""Model parameters as one flat vector with named views.

Loading a model is one copy, ``a - b`` one kernel, a sum over clients one addition, clipping one norm.
`Layout` maps tensors to coordinates; `Params` is a vector with a layout; `Resident` is a module whose parameters *are*
views into such a vector.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paceline.core.errors import LayoutError
from paceline.core.layout import Layout, float_buffers

__all__ = ["DeferredNumber", "DeferredParams", "Params", "Resident"]


class Params:
    """Flat vector with a layout: supports vector arithmetic, and access to named views like a dict.

    Args:
        vector: shape [d], contiguous; not copied.
        layout: names and shapes of its parts.

    Raises:
        LayoutError: two operands have different layouts, or the vector has the wrong length.

    Example:
        >>> layout = Layout.build([("a", (2,), "param"), ("b", (1,), "param")])
        >>> params = Params(torch.tensor([1.0, 2.0, 3.0]), layout)
        >>> (params - 0.5 * params)["a"]
        tensor([0.5000, 1.0000])
    """

    __slots__ = ("layout", "vector")
    __array_ufunc__ = None
    """Makes a numpy scalar on the left defer to this class."""

    def __init__(self, vector: Tensor, layout: Layout) -> None:
        if vector.shape[-1:] != (layout.size,):
            raise LayoutError(f"a vector of shape {tuple(vector.shape)} does not match a layout of {layout.size} coordinates")
        self.vector = vector
        self.layout = layout

    @staticmethod
    def of(module: nn.Module, layout: Layout) -> Params:
        """Copy a module's current values into a new vector, in float32."""
        source = dict(module.named_parameters()) | dict(module.named_buffers())
        parts = [source[e.name].detach().reshape(-1).float() for e in layout.entries]
        return Params(torch.cat(parts), layout)

    # -- as a dict of named tensors ------------------------------------------------------------
    def __getitem__(self, name: str) -> Tensor:
        return self.layout.view(self.vector, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.by_name)

    def __contains__(self, name: object) -> bool:
        return name in self.layout.by_name

    def __len__(self) -> int:
        return self.layout.size

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, view) pairs."""
        return ((name, self[name]) for name in self)

    # -- as a vector ---------------------------------------------------------------------------
    def _other(self, other: Params | Tensor | float) -> Tensor | float:
        if isinstance(other, Params):
            if other.layout is not self.layout and other.layout.digest != self.layout.digest:
                raise LayoutError("the two parameter vectors have different layouts; use vectors of the same model")
            return other.vector
        return other

    def _new(self, vector: Tensor) -> Params:
        return Params(vector, self.layout)

    def __add__(self, other: Params | Tensor | float) -> Params:
        return self._new(self.vector + self._other(other))

    def __sub__(self, other: Params | Tensor | float) -> Params:
        return self._new(self.vector - self._other(other))

    def __mul__(self, other: Params | Tensor | float) -> Params:
        return self._new(self.vector * self._other(other))

    def __truediv__(self, other: Params | Tensor | float) -> Params:
        return self._new(self.vector / self._other(other))

    def __rsub__(self, other: Tensor | float) -> Params:
        return self._new(other - self.vector)

    def __pow__(self, exponent: float) -> Params:
        return self._new(self.vector**exponent)

    def __neg__(self) -> Params:
        return self._new(-self.vector)

    __radd__ = __add__
    __rmul__ = __mul__

    def zeros(self) -> Params:
        """Return a zero vector of the same layout."""
        return self._new(torch.zeros_like(self.vector))

    def clone(self) -> Params:
        """Return a copy."""
        return self._new(self.vector.clone())

    def map(self, fn: Callable[[Tensor], Tensor]) -> Params:
        """Return the parameters with an elementwise function applied.

        Args:
            fn: maps the vector, shape [d], to a vector of the same shape.

        Example:
            >>> from torch import nn
            >>> module = nn.Linear(2, 1)
            >>> Params.of(module, Layout.of(module)).zeros().map(lambda v: v + 1).vector
            tensor([1., 1., 1.])
        """
        return self._new(fn(self.vector))

    def to(self, device: torch.device | str) -> Params:
        """Return these parameters on `device`; the vector is not copied if it is already there."""
        return self._new(self.vector.to(device))

    def norm(self) -> Tensor:
        """Return the Euclidean norm as a scalar tensor."""
        length: Tensor = torch.linalg.vector_norm(self.vector)
        return length

    def dot(self, other: Params) -> Tensor:
        """Return the inner product as a scalar tensor."""
        value = self._other(other)
        assert isinstance(value, Tensor)
        return torch.dot(self.vector, value)

    @property
    def finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return all(map(math.isfinite, torch.stack(torch.aminmax(self.vector)).tolist())) if len(self) else True

    def sha256(self) -> str:
        """Return the SHA-256 of the vector's little-endian float32 bytes."""
        return hashlib.sha256(self.vector.detach().cpu().contiguous().numpy().tobytes()).hexdigest()

    def __repr__(self) -> str:
        return f"Params({self.layout.size} values in {len(self.layout.entries)} tensors)"


class DeferredParams(Params):
    """Parameters whose vector is formed on demand, so that many of them can be summed in one step; an engine defines them."""

    __slots__ = ()

    @property
    def formed(self) -> bool:
        """Whether the vector exists already."""
        raise NotImplementedError

    def total(self, weight: float, count: int) -> tuple[Tensor, Tensor | None] | None:
        """Sum this value over the `count` clients that it represents.

        Args:
            weight: of each client.
            count: number of clients.

        Returns:
            The weighted sum, shape [d], and an upper bound on the largest |weight x value| of a client, shape []; None in place of the
            bound if the single values are not formed. None if this value is one client's.
        """
        raise NotImplementedError

    @staticmethod
    def weighted(values: Sequence[Any], weights: Sequence[float]) -> tuple[Tensor, Tensor | None] | None:
        """Return what `total` does for values of one computation, each with its own weight; None if they belong to several."""
        raise NotImplementedError


class DeferredNumber(float):
    """One number for each of many clients; it can only be returned and summed."""

    def each(self) -> Sequence[float]:
        """Return the clients' numbers."""
        raise NotImplementedError


def _as_they_are() -> None:
    """Stand for ``flatten_parameters`` of recurrent layers, which would move their weights on a GPU out of the vector."""


class Resident:
    """Module whose trainable parameters and float buffers are views into one vector.

    `params` is the live vector, `grads` its gradient in the same layout (zero for buffers). Loading another model is one
    copy; a step of SGD is one kernel. There is one instance per worker and model shape.

    Parameters are exchanged in float32. A float64 module trains in a float64 vector. Tensors of other dtypes (bfloat16) are
    no views: they are written from the float32 vector before each pass (`sync`), and steps are taken in the vector.

    Args:
        module: moved to `device` and modified in place; parameters outside the layout no longer require gradients.
        layout: layout of the vector.
        device: device of the computation.
    """

    def __init__(self, module: nn.Module, layout: Layout, device: torch.device | str = "cpu") -> None:
        self.module = module.to(device)
        self.layout = layout
        self.device = torch.device(device)
        self.mixed: torch.dtype | None = None
        """Dtype of matrix products and convolutions in training; None for that of the parameters."""
        self.widths: dict[Any, int] = {}
        """Largest layer output per sample in bytes, by shape of the sample; cache of the evaluation."""
        self.flops = 0.0
        """Forward cost of one sample in FLOPs, set by the code that built the module; 0 if unknown."""
        self.params = Params.of(self.module, layout)
        owned = {e.name: e for e in layout.entries}
        found = dict(self.module.named_parameters())
        tensors = found | dict(self.module.named_buffers())
        if any(tensors[name].dtype == torch.float64 for name in owned):
            self.params = Params(self.params.vector.double(), layout)
        self.grads = self.params.zeros()
        kind = self.params.vector.dtype
        apart = [name for name in owned if tensors[name].dtype != kind]
        self._cast = [(self.params[name], tensors[name]) for name in apart]
        self.views = not self._cast
        """Whether all of the module's tensors in the layout are views into the vector."""
        self._cast_buffers = [pair for pair, name in zip(self._cast, apart, strict=True) if owned[name].kind == "buffer"]
        self._trained = [found[e.name] for e in layout.entries if e.kind == "param"]
        self._grads = [self.grads[e.name] for e in layout.entries if e.kind == "param"]
        for name, parameter in found.items():
            if name in owned:
                parameter.requires_grad_(True)
                if name in apart:
                    continue
                parameter.data = self.params[name]
                parameter.grad = self.grads[name]
            else:
                parameter.requires_grad_(False)
        self.initial_buffers = {n: b.detach().clone() for n, b in float_buffers(self.module) if n not in owned}
        """Float buffers outside the vector, as they are before any training."""
        counters = [(n, b) for n, b in self.module.named_buffers() if n.rpartition(".")[2] == "num_batches_tracked"]
        self.counters = {name: int(buffer) for name, buffer in counters}
        """Initial values of BatchNorm's counters of batches; every local training starts with them."""
        self._counters = [(buffer, self.counters[name]) for name, buffer in counters]
        for part in self.module.modules():
            if isinstance(part, nn.RNNBase):
                part.flatten_parameters = _as_they_are  # type: ignore[method-assign]
        for name, _ in float_buffers(self.module):
            if name in owned and name not in apart:
                parent, _, leaf = name.rpartition(".")
                self.module.get_submodule(parent)._buffers[leaf] = self.params[name]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return the autocast context of training steps."""
        if self.mixed is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.mixed)

    def load(self, params: Params) -> None:
        """Copy `params` into the module.

        Raises:
            LayoutError: the layouts differ.
        """
        if params.layout is not self.layout and params.layout.digest != self.layout.digest:
            raise LayoutError(
                f"the parameters do not match this module's layout: {params.layout.difference(self.layout)}; "
                "a client's data must have the sample shapes and classes of the run's task"
            )
        with torch.no_grad():
            self.params.vector.copy_(params.vector)
        if self._cast:
            self.sync()

    @torch.no_grad()
    def sync(self) -> None:
        """Write the vector into the tensors that are no views of it."""
        for view, tensor in self._cast:
            tensor.copy_(view)

    @torch.no_grad()
    def sync_buffers(self) -> None:
        """Write running statistics that are no views back into the vector."""
        for view, tensor in self._cast_buffers:
            view.copy_(tensor)

    def restart(self) -> None:
        """Reset BatchNorm's counters of batches, which belong to one local training."""
        for buffer, initial in self._counters:
            buffer.fill_(initial)

    def snapshot(self) -> Params:
        """Return a copy of the current values, in float32."""
        vector = self.params.vector
        return Params(vector.clone() if vector.dtype == torch.float32 else vector.float(), self.layout)

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters in the vector, in its order."""
        return self._trained

    def clear(self) -> None:
        """Drop the parameters' gradients, so that autograd stores its own tensors without a copy."""
        for parameter in self._trained:
            parameter.grad = None

    def collect(self) -> Params:
        """Copy the parameters' gradients into `grads` (0 for missing ones) and return it."""
        for view, parameter in zip(self._grads, self._trained, strict=True):
            if parameter.grad is None:
                view.zero_()
            elif parameter.grad.data_ptr() != view.data_ptr():
                view.copy_(parameter.grad)
        return self.grads

    @property
    def stateful(self) -> bool:
        """Whether the module has float buffers that are not in the vector (policy ``local``)."""
        return bool(self.initial_buffers)

    def local_buffers(self) -> dict[str, Tensor]:
        """Return copies of the float buffers outside the vector."""
        return {n: b.detach().clone() for n, b in float_buffers(self.module) if n not in self.layout.by_name}

    def load_buffers(self, values: dict[str, Tensor]) -> None:
        """Copy float buffers outside the vector back into the module."""
        if not values:
            return
        own = dict(float_buffers(self.module))
        for name, value in values.items():
            own[name].copy_(value)
