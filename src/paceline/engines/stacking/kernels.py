"""How stacks are computed: chosen once at the start of a run, so that all workers and a resumed run compute the same bits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from paceline.core.errors import ConfigError
from paceline.core.wording import setting

__all__ = ["Kernels", "current", "using"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Kernels:
    """Which forms of the stacked step are used; by default, plain PyTorch calls.

    Args:
        graph: record the local loop of a chunk and replay it with new data (a CUDA graph; on a CPU, without recording).
        compile: compile the stacked gradient with ``torch.compile``.
        views: kernels of convolutions, [out, in, height, width], that are computed from views, see `convolve`.

    Example:
        >>> str(Kernels(graph=True, views=frozenset({(64, 32, 3, 3)})))
        'graph,views=64x32x3x3'
        >>> Kernels.parse("plain") == Kernels()
        True
    """

    graph: bool = False
    compile: bool = False
    views: frozenset[Shape] = frozenset()
    every: bool = False
    """Whether all convolutions are computed from views."""

    @staticmethod
    def parse(text: str) -> Kernels:
        """Return what a text names, as `str` writes it.

        Raises:
            ConfigError: a part is unknown.
        """
        graph = compiled = every = False
        views: set[Shape] = set()
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, _, shape = part.partition("=")
            sizes = shape.split("x") if shape else []
            if part == "graph":
                graph = True
            elif part == "compile":
                compiled = True
            elif part == "views":
                every = True
            elif name == "views" and len(sizes) == 4 and all(size.isdecimal() for size in sizes):
                views.add(tuple(map(int, sizes)))
            elif part != "plain":
                known = "auto, plain, graph, compile, views, or views=OUTxINxHEIGHTxWIDTH for one kernel"
                raise ConfigError(f"{setting('kernels')}: {part!r} is unknown; write parts separated by commas: {known}")
        return Kernels(graph, compiled, frozenset(views), every)

    def __str__(self) -> str:
        parts = ["graph"] * self.graph + ["compile"] * self.compile + ["views"] * self.every
        parts += ["views=" + "x".join(map(str, shape)) for shape in sorted(self.views)]
        return ",".join(parts) or "plain"

    def from_views(self, shape: Shape) -> bool:
        """Return whether the convolution with a kernel of this shape is computed from views."""
        return self.every or shape in self.views


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
