"""Triton kernels of stacked layers on GPUs: convolutions as implicit matrix products, and linear layers as a special case.

K clients with kernels of their own are one launch. Positions, kernels and clients are tiled; the columns of a convolution are
formed in registers and never stored. All sums are formed in an order that depends on the shapes only, so a result has the
same bits every time. A float32 product is computed as three TF32 products (``tf32x3``), with the error of a float32 product.

Without Triton this module can be imported, but nothing in it launched: see `paceline.engines.stacking.products.available`.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"
from __future__ import annotations

from typing import Any

try:
    import triton.language as tl
    from triton import jit
except ImportError:

    def jit(*kernels: Any, **options: Any) -> Any:
        """Leave a kernel as it is."""
        return kernels[0] if kernels else lambda kernel: kernel


__all__ = ["gather", "weigh"]


@jit
def high(x):
    """Return a float32 value without the bits that a TF32 product ignores."""
    return (x.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)


_PLAIN = ["positions", "taps", "across", "wide", "area", "height", "width", "top", "left"]
"""Arguments whose values do not lead to further variants of a kernel, each of which takes a second to compile."""


@jit(do_not_specialize=_PLAIN)
def gather(
    x, w, rest, bias, out,
    positions, outs, channels, taps, across, wide, area, height, width,
    xk, xb, xy, xx, xc, wk, wt, wc, wn, op, ok, om, share, top, left,
    down: tl.constexpr, right: tl.constexpr, FLAT: tl.constexpr, TRANSPOSED: tl.constexpr,
    BIAS: tl.constexpr, PARTS: tl.constexpr,
    SPLIT: tl.constexpr, M: tl.constexpr, N: tl.constexpr, R: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute ``out[k, m, n] = bias[k, n] + sum over taps and channels of x[k, source(m, tap), c] w[k, tap, c, n]``.

    Args:
        x: images [K, B, height, width, channels] with strides xk, xb, xy, xx, xc.
        w: kernels [K, taps, channels, outs] with strides wk, wt, wc, wn.
        rest: what the kernels are above their `high` parts, with the same strides, read if SPLIT; w are then those parts.
        bias: [K, outs], read if BIAS.
        out: [PARTS, K, positions, outs] with strides op, ok, om; a part sums `share` of the taps x channels.
        positions, wide, area: output positions, B x area, in rows of `wide`.
        across: width of the kernel.
        top, left, down, right: padding and stride of the convolution.
        FLAT: whether images and kernels have one position, as in a linear layer.
        TRANSPOSED: whether x are slopes of a convolution's outputs, and `out` those of its inputs.
        SPLIT: whether a float32 product is the sum of three TF32 products.
        M, N, R: tile of positions, outputs, and taps x channels.
    """
    m, n = tl.program_id(0) * M + tl.arange(0, M), tl.program_id(1) * N + tl.arange(0, N)
    client, part = (tl.program_id(2) // PARTS).to(tl.int64), tl.program_id(2) % PARTS
    inside, wanted = m < positions, n < outs
    if FLAT:
        image, y, z = m, m, m
    else:
        image, y, z = m // area, m % area // wide, m % area % wide
    base = x + client * xk + image.to(tl.int64) * xb
    total = taps * channels
    acc = tl.zeros((M, N), dtype=tl.float32)
    for start in range(part * share, tl.minimum(total, (part + 1) * share), R):
        r = start + tl.arange(0, R)
        have = r < total
        tap, c = r // channels, r % channels
        iy, iz = (tap // across)[None, :], (tap % across)[None, :]
        at = client * wk + tap[:, None] * wt + c[:, None] * wc + n[None, :] * wn
        if FLAT:
            sy, sz, lies = 0, 0, inside[:, None]
        elif TRANSPOSED:
            ty, tz = y[:, None] + top - iy, z[:, None] + left - iz
            sy, sz = ty // down, tz // right
            lies = (ty >= 0) & (tz >= 0) & (sy * down == ty) & (sz * right == tz) & (sy < height) & (sz < width)
        else:
            sy, sz = y[:, None] * down + iy - top, z[:, None] * right + iz - left
            lies = (sy >= 0) & (sz >= 0) & (sy < height) & (sz < width)
        a = tl.load(base[:, None] + sy * xy + sz * xx + c[None, :] * xc, mask=lies & inside[:, None] & have[None, :], other=0.0)
        b = tl.load(w + at, mask=have[:, None] & wanted[None, :], other=0.0)
        if SPLIT:
            top_a = high(a)
            acc = tl.dot(a - top_a, b, acc, input_precision="tf32")
            acc = tl.dot(top_a, tl.load(rest + at, mask=have[:, None] & wanted[None, :], other=0.0), acc, input_precision="tf32")
            acc = tl.dot(top_a, b, acc, input_precision="tf32")
        else:
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
    if BIAS:
        acc += tl.load(bias + client * outs + n, mask=wanted, other=0.0)[None, :]
    to = out + part * op + client * ok + m.to(tl.int64)[:, None] * om + n[None, :]
    tl.store(to, acc.to(out.dtype.element_ty), mask=inside[:, None] & wanted[None, :])


@jit(do_not_specialize=_PLAIN)
def weigh(
    x, slope, out,
    positions, outs, channels, taps, across, wide, area, height, width,
    xk, xb, xy, xx, xc, sk, sm, op, ok, ot, oc, on, share, top, left,
    down: tl.constexpr, right: tl.constexpr, FLAT: tl.constexpr,
    PARTS: tl.constexpr, R: tl.constexpr, N: tl.constexpr, P: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute ``out[k, tap, c, n] = sum over positions of x[k, source(p, tap), c] slope[k, p, n]``: the gradient of kernels.

    Args: as of `gather`; slope [K, positions, outs] has strides sk, sm, 1, and out [PARTS, K, taps, channels, outs] has strides
    op, ok, ot, oc, on; a part sums `share` of the positions.
    """
    r, n = tl.program_id(0) * R + tl.arange(0, R), tl.program_id(1) * N + tl.arange(0, N)
    client, part = (tl.program_id(2) // PARTS).to(tl.int64), tl.program_id(2) % PARTS
    tap, c = r // channels, r % channels
    iy, iz = tap // across, tap % across
    have, wanted = r < taps * channels, n < outs
    base = x + client * xk + c * xc
    acc = tl.zeros((R, N), dtype=tl.float32)
    for start in range(part * share, tl.minimum(positions, (part + 1) * share), P):
        p = start + tl.arange(0, P)
        inside = p < positions
        if FLAT:
            image, sy, sz, lies = p, 0, 0, inside[None, :]
        else:
            image, place = p // area, p % area
            sy = (place // wide)[None, :] * down + iy[:, None] - top
            sz = (place % wide)[None, :] * right + iz[:, None] - left
            lies = (sy >= 0) & (sz >= 0) & (sy < height) & (sz < width) & inside[None, :]
        at = base[:, None] + image.to(tl.int64)[None, :] * xb + sy * xy + sz * xx
        a = tl.load(at, mask=lies & have[:, None], other=0.0)
        at = slope + client * sk + p.to(tl.int64)[:, None] * sm + n[None, :]
        b = tl.load(at, mask=inside[:, None] & wanted[None, :], other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    to = out + part * op + client * ok + tap[:, None] * ot + c[:, None] * oc + n[None, :] * on
    tl.store(to, acc.to(out.dtype.element_ty), mask=have[:, None] & wanted[None, :])


@jit
def step(at, start, slope, size, ak, sk, rate, B: tl.constexpr):  # fmt: skip
    """Write ``at[k] = start[k] - rate slope[k]`` for rows of `size` values, with strides ak, sk, and `size` for slope."""
    client, i = tl.program_id(1).to(tl.int64), tl.program_id(0) * B + tl.arange(0, B)
    inside = i < size
    value = tl.load(start + client * sk + i, mask=inside) - rate * tl.load(slope + client * size + i, mask=inside)
    tl.store(at + client * ak + i, value, mask=inside)


def launch(kernel: Any, grid: tuple[int, int, int], *args: Any, **options: Any) -> None:
    """Launch a kernel on the current stream."""
    kernel[grid](*args, **options)
