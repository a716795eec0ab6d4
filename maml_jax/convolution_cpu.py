"""A convolution and its two gradients on a CPU, in the forms that were fastest there.

    conv     `lax.conv_general_dilated` with one kernel, which makes its patches in the cache
    spread   the same, for each residue of the positions modulo the stride: among positions of
             one residue it is a convolution of stride 1 with the kernel's entries of that residue
    gather   products with the patches of a few examples at a time, which stay in the cache

Milliseconds on one core (AMD EPYC, 85 GFLOP/s in a large product) for 75 examples: one product
with all patches / these forms; and what the FLOPs take at the rate of a large product.

    inputs and filters         conv        spread        gather     large product
    28x28x1, 64, stride 2    0.7 / 0.8    3.6 / 2.8     1.0 / 0.8        0.2
    14x14x64, 64, stride 2   6.5 / 5.9     12 / 5.1     9.5 / 7.4        3.2
    84x84x3, 32               60 / 19      76 / 106      88 / 67          11
    42x42x32, 32             168 / 35     161 / 52      316 / 110         29

The gradients of `lax.conv_general_dilated` itself, inside a loop over tasks, took 6,900 ms in
place of the last 110. Shapes and functions are those of `maml_jax.bilinear`.
"""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from maml_jax import convolution_products as products
from maml_jax.convolution_products import Geometry

# Patches of more bytes than this are made for some of the examples at a time.
_CACHE_BYTES = 2**21

# Products of fewer FLOPs than this run side by side: a loop would cost more than it saves.
_LOOP_FLOPS = 1e6

_LAYOUTS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC")}


def conv(x: jax.Array, w: jax.Array, *, geometry: Geometry) -> jax.Array:
    """Convolves `[B, N, *S, I]` and `[B, *K, I, O]` to `[B, N, *P, O]`."""
    if not _is_native(x, geometry):
        return products.conv(x, w, geometry=geometry)
    return _one_by_one(_native_conv, products.conv, x, w, geometry)


def spread(g: jax.Array, w: jax.Array, *, geometry: Geometry) -> jax.Array:
    """Computes the adjoint of `conv` in the inputs, from `[B, N, *P, O]` and the kernels."""
    if not _is_native(g, geometry) or min(min(pad) for pad in geometry.pads) < 0:
        return products.spread(g, w, geometry=geometry)
    return _one_by_one(_native_spread, products.spread, g, w, geometry)


def gather(x: jax.Array, g: jax.Array, *, geometry: Geometry) -> jax.Array:
    """Computes the adjoint of `conv` in the kernels, from the inputs and `[B, N, *P, O]`."""
    num_examples = x.shape[1]
    patch_bytes = math.prod((*geometry.outputs, *geometry.window, x.shape[-1], x.dtype.itemsize))
    size = _group_size(num_examples, len(x) * patch_bytes)
    if size == num_examples:
        return products.gather(x, g, geometry=geometry)

    def grouped(array):
        groups = array.reshape(len(array), -1, size, *array.shape[2:])
        return jnp.moveaxis(groups, 1, 0)

    def add(total, group):
        return total + products.gather(*group, geometry=geometry), None

    zeros = jnp.zeros((len(x), *geometry.window, x.shape[-1], g.shape[-1]), x.dtype)
    return lax.scan(add, zeros, (grouped(x), grouped(g)))[0]


def _is_native(array: jax.Array, geometry: Geometry) -> bool:
    """Whether XLA has a fast convolution for it: in float32, dense kernels."""
    dense = all(d == 1 for d in geometry.dilation)
    return array.dtype == jnp.float32 and dense and len(geometry.window) in _LAYOUTS


def _one_by_one(native: Callable, product: Callable, a, w, geometry: Geometry):
    """Runs the `B` convolutions one after the other, or side by side if they are small."""
    if len(a) == 1:
        return native(a[0], w[0], geometry)[None]
    flops = 2 * a.shape[1] * math.prod((*geometry.outputs, *w.shape[1:]))
    if flops < _LOOP_FLOPS:
        return product(a, w, geometry=geometry)
    return lax.map(lambda pair: native(*pair, geometry), (a, w))


def _native_conv(x, w, geometry, strides=None, pads=None):
    return lax.conv_general_dilated(
        x,
        w,
        geometry.strides if strides is None else strides,
        geometry.pads if pads is None else pads,
        dimension_numbers=_LAYOUTS[w.ndim - 2],
        precision=geometry.precision,
    )


def _native_spread(g, w, geometry):
    """Interleaves the results of all residues, and cuts the padding off."""
    strides, rank = geometry.strides, len(geometry.strides)
    padded = [n + sum(pad) for n, pad in zip(geometry.inputs, geometry.pads, strict=True)]
    counts = [-(-size // s) for size, s in zip(padded, strides, strict=True)]
    parts = [
        _residue(g, w[tuple(map(slice, residue, w.shape, strides))], counts, geometry)
        for residue in itertools.product(*map(range, strides))
    ]
    every = jnp.stack(parts, axis=1).reshape(len(g), *strides, *counts, w.shape[-2])
    order = [axis for i in range(rank) for axis in (1 + rank + i, 1 + i)]
    sizes = [n * s for n, s in zip(counts, strides, strict=True)]
    whole = every.transpose(0, *order, 2 * rank + 1).reshape(len(g), *sizes, w.shape[-2])
    cut = [slice(pad[0], pad[0] + n) for pad, n in zip(geometry.pads, geometry.inputs, strict=True)]
    return whole[:, *cut]


def _residue(g, w, counts, geometry):
    """Computes Σ_j g[u - j] w[j]ᵀ for positions u below `counts`."""
    window = w.shape[:-2]
    if 0 in window:  # The stride is larger than the kernel.
        return jnp.zeros((len(g), *counts, w.shape[-2]), g.dtype)
    ends = zip(window, counts, g.shape[1:-1], strict=True)
    pads = [(k - 1, n - p) for k, n, p in ends]
    mirrored = jnp.flip(w, range(len(window))).swapaxes(-1, -2)
    return _native_conv(g, mirrored, geometry, (1,) * len(window), pads)


def _group_size(num_examples: int, bytes_each: int) -> int:
    """Gives the largest divisor of the number of examples whose patches fit."""
    if num_examples * bytes_each <= 4 * _CACHE_BYTES:
        return num_examples
    most = max(1, _CACHE_BYTES // bytes_each)
    return max(n for n in range(1, most + 1) if num_examples % n == 0)
