"""How stacks are computed: chosen once at the start of a run, so that all workers and a resumed run compute the same bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from paceline.core.errors import ConfigError
from paceline.core.wording import setting

__all__ = ["EVERY", "Kernels", "current", "using"]

Shape = tuple[int, ...]

EVERY: Shape = ()
"""Stands for the weights of all layers."""


@dataclass(frozen=True)
class Kernels:
    """Which forms of the stacked step are used; by default, plain PyTorch calls.

    Args:
        graph: record the local loop of a chunk and replay it with new data (a CUDA graph; on a CPU, without recording).
        compile: compile the stacked gradient with ``torch.compile``.
        views: kernels of convolutions, [out, in, height, width], that are computed from views, see `convolve`.
        triton: kernels of convolutions and weights of linear layers, [out, in], that own kernels of Triton compute.

    Example:
        >>> str(Kernels(graph=True, triton=frozenset({(64, 32, 3, 3)})))
        'graph,triton=64x32x3x3'
        >>> Kernels.parse("plain") == Kernels()
        True
    """

    graph: bool = False
    compile: bool = False
    views: frozenset[Shape] = frozenset()
    triton: frozenset[Shape] = frozenset()

    @staticmethod
    def parse(text: str) -> Kernels:
        """Return what a text names, as `str` writes it.

        Raises:
            ConfigError: a part is unknown.
        """
        found: dict[str, set[Shape]] = {name: set() for name in _RANKS}
        flags = set()
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, shape = part.partition("=")
            sizes = shape.split("x") if shape else []
            if not equals and name in ("graph", "compile"):
                flags.add(name)
            elif not equals and name in _RANKS:
                found[name].add(EVERY)
            elif name in _RANKS and len(sizes) in _RANKS[name] and all(size.isdecimal() for size in sizes):
                found[name].add(tuple(map(int, sizes)))
            elif part != "plain":
                known = "auto, plain, graph, compile, views, triton, or views=OUTxINxHEIGHTxWIDTH and triton=OUTxIN for one layer"
                raise ConfigError(f"{setting('kernels')}: {part!r} is unknown; write parts separated by commas: {known}")
        return Kernels("graph" in flags, "compile" in flags, frozenset(found["views"]), frozenset(found["triton"]))

    def __str__(self) -> str:
        parts = ["graph"] * self.graph + ["compile"] * self.compile
        for name, shapes in (("views", self.views), ("triton", self.triton)):
            parts += [name if shape == EVERY else f"{name}=" + "x".join(map(str, shape)) for shape in sorted(shapes)]
        return ",".join(parts) or "plain"

    def form(self, shape: Shape) -> str:
        """Return how the layer with weights of this shape is computed: ``triton``, ``views`` or ``plain``."""
        for name, shapes in (("triton", self.triton), ("views", self.views)):
            if len(shape) in _RANKS[name] and (shape in shapes or EVERY in shapes):
                return name
        return "plain"


_RANKS = {"views": (4,), "triton": (2, 4)}
"""Numbers of dimensions of the weights that a form can compute."""

_using = [Kernels()]


def current() -> Kernels:
    """Return the forms in use in this process."""
    return _using[-1]


@contextlib.contextmanager
def using(kernels: Kernels) -> Iterator[None]:
    """Context manager: use these forms."""
    _using.append(kernels)
    try:
        yield
    finally:
        _using.pop()
