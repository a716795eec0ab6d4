"""A convolution and its two gradients on a CPU, in the forms that were fastest there.

    conv     `lax.conv_general_dilated` with one kernel; of few channels products with patches
    spread   the same with the mirrored kernel, at stride 1; else products with the kernel
    gather   products with patches

Products are made for a few examples at a time, so that their patches stay in the cache.

Milliseconds of 3x3 kernels on 75 examples, one AVX-512 core, and what its matrix-product rate
would take; "native" is XLA's convolution, "grouped" are products for a few examples at a time:

    inputs, filters, stride          native   products   grouped   at the rate
    28x28x1, 64, 2    conv            0.13       0.20       0.21         0.08
                      spread             -       0.37       0.34
                      gather             -       0.31       0.33
    14x14x64, 64, 2   conv            1.43       2.60       2.11         1.32
                      spread             -       1.57       1.58
                      gather             -       3.42       2.13
    84x84x3, 32, 1    conv            52.5       99.0       45.7         4.45
                      spread          46.6       39.0       11.6
                      gather             -       81.5       16.9
    42x42x32, 32, 1   conv            19.1        149       26.3        11.86
                      spread          19.0       94.9       18.7
                      gather             -        161       24.7

The gradients of `lax.conv_general_dilated` itself, inside a loop over tasks, take seconds.
Shapes and functions are those of `maml_jax.bilinear`.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from maml_jax import convolution_products as products
from maml_jax.chunks import chunk_size
from maml_jax.convolution_products import Geometry
from maml_jax.host import core_cache_bytes

# Patches of more bytes than this are made for some of the examples at a time, at least for so
# many: the products of one example are too small. Where a core's own cache is small, fewer: W1's
# gradient took 776, 724, 683 and 657 ms with 3, 2, 1 and 0.5 MiB at a second level of 0.5 MiB
# (AVX2), where W2's took 2.32, -, 2.36 and 2.31 s. `fits_in_groups` keeps the larger number there:
# with the smaller ones W2 took 2.45 to 2.51 s.
_PATCH_BYTES = 3 * 2**20
_SMALL_CACHE, _SMALL_PATCH_BYTES = 2**19, 2**20
_FEWEST_EXAMPLES = 3

# Of fewer channels than this, patches are narrow, and products as fast as a native convolution, if
# not in the first line of the table, then in a network; for larger images, faster.
_FEW_CHANNELS = 8

# Products of fewer FLOPs than this run side by side: a loop would cost more than it saves.
_LOOP_FLOPS = 1e6

_LAYOUTS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC")}


def conv(x: jax.Array, w: jax.Array, *, geometry: Geometry) -> jax.Array:
    """Convolves `[B, N, *S, I]` and `[B, *K, I, O]` to `[B, N, *P, O]`."""
    if not geometry.window:
        return products.conv(x, w, geometry=geometry)
    size = _size(x, w.shape[-2], geometry)
    if _is_native(x, w, size, geometry):
        return _one_by_one(_native_conv, products.conv, x, w, geometry)
    return _joined(lambda x: products.conv(x, w, geometry=geometry), x, size)


def spread(g: jax.Array, w: jax.Array, *, geometry: Geometry) -> jax.Array:
    """Computes the adjoint of `conv` in the inputs, from `[B, N, *P, O]` and the kernels."""
    if not geometry.window:
        return jnp.matmul(g, _transposed(w), precision=geometry.precision)
    size = _size(g, w.shape[-2], geometry)
    if max(geometry.strides, default=1) == 1 and _is_native(g, w, size, geometry):
        return _one_by_one(_native_spread, products.spread, g, w, geometry)
    return _joined(lambda g: products.spread(g, w, geometry=geometry), g, size)


def gather(x: jax.Array, g: jax.Array, *, geometry: Geometry) -> jax.Array:
    """Computes the adjoint of `conv` in the kernels, from the inputs and `[B, N, *P, O]`."""
    if not geometry.window:
        if x.shape[-1] > g.shape[-1]:  # The smaller factor is the cheaper to transpose.
            return jnp.matmul(_transposed(g), x, precision=geometry.precision).mT
        return jnp.matmul(_transposed(x), g, precision=geometry.precision)
    size = _size(x, x.shape[-1], geometry)
    if size == x.shape[1]:
        return products.gather(x, g, geometry=geometry)
    groups, rest = zip(*(_split(array, size) for array in (x, g)), strict=True)

    def add(total, group):
        group = (_with_axis(part, len(x)) for part in group)
        return total + products.gather(*group, geometry=geometry).astype(total.dtype), None

    wide = jnp.promote_types(x.dtype, jnp.float32)
    total = jnp.zeros((len(x), *geometry.window, x.shape[-1], g.shape[-1]), wide)
    total, _ = lax.scan(add, total, groups)
    if rest[0].size:
        total += products.gather(*rest, geometry=geometry).astype(wide)
    return total.astype(x.dtype)


def _transposed(matrices: jax.Array) -> jax.Array:
    """Transposes for good: XLA's batched product takes two to five times as long to do it."""
    return lax.optimization_barrier(matrices.mT) if len(matrices) > 1 else matrices.mT


def _is_native(array: jax.Array, w: jax.Array, size: int, geometry: Geometry) -> bool:
    """Whether XLA has a faster convolution for it: in float32, dense kernels."""
    dense = all(d == 1 for d in geometry.dilation)
    narrow = w.shape[-2] < _FEW_CHANNELS
    return array.dtype == jnp.float32 and dense and not narrow and w.ndim - 3 in _LAYOUTS


def _one_by_one(native: Callable, product: Callable, a, w, geometry: Geometry):
    """Runs the `B` convolutions one after the other, or side by side if they are small."""
    if len(a) == 1:
        return native(a[0], w[0], geometry)[None]
    flops = 2 * a.shape[1] * math.prod((*geometry.outputs, *w.shape[1:]))
    if flops < _LOOP_FLOPS:
        return product(a, w, geometry=geometry)
    return lax.map(lambda pair: native(*pair, geometry), (a, w))


def _native_conv(x, w, geometry):
    return _native(x, w, geometry, geometry.pads)


def _native_spread(g, w, geometry):
    """Computes Σ_k g[u + before - k] w[k]ᵀ for positions u of the inputs, at stride 1."""
    ends = zip(geometry.window, geometry.pads, geometry.inputs, geometry.outputs, strict=True)
    pads = [(k - 1 - before, n - p + before) for k, (before, _), n, p in ends]
    mirrored = jnp.flip(w, range(len(geometry.window))).swapaxes(-1, -2)
    return _native(g, mirrored, geometry, pads)


def _native(a, w, geometry, pads):
    layout = _LAYOUTS[len(geometry.window)]
    return lax.conv_general_dilated(
        a, w, geometry.strides, pads, dimension_numbers=layout, precision=geometry.precision
    )


def group_size(
    num_examples: int, channels: int, itemsize: int, geometry: Geometry, *, batch: int = 1
) -> int:
    """Gives the number of examples whose patches are made at a time: all, if they fit.

    Args:
      num_examples: N.
      channels: of what the patches are taken from.
      itemsize: bytes of an entry.
      geometry: of the convolution.
      batch: B.

    Returns:
      The number, in 1 … N.
    """
    fit = _patch_bytes() // (batch * _bytes_each(channels, itemsize, geometry))
    return chunk_size(num_examples, max(fit, _FEWEST_EXAMPLES))


def fits_in_groups(channels: int, itemsize: int, geometry: Geometry) -> bool:
    """Tells whether the patches of as many examples as products need stay in the cache.

    Args:
      channels: of what the patches are taken from.
      itemsize: bytes of an entry.
      geometry: of the convolution.

    Returns:
      Whether they do.
    """
    return _FEWEST_EXAMPLES * _bytes_each(channels, itemsize, geometry) <= _PATCH_BYTES


def _patch_bytes() -> int:
    cache = core_cache_bytes()
    small = cache is not None and cache <= _SMALL_CACHE
    return min(_PATCH_BYTES, _SMALL_PATCH_BYTES) if small else _PATCH_BYTES


def _bytes_each(channels: int, itemsize: int, geometry: Geometry) -> int:
    return math.prod((*geometry.outputs, *geometry.window, channels, itemsize))


def _size(array: jax.Array, channels: int, geometry: Geometry) -> int:
    batch, num_examples = array.shape[:2]
    return group_size(num_examples, channels, array.dtype.itemsize, geometry, batch=batch)


def _split(array: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Parts `[B, N, ...]` into groups `[G, B, size, ...]` and fewer examples than that.

    Without the axis `B` if it is 1: XLA would lay it out elsewhere, and copy.
    """
    whole = array.shape[1] - array.shape[1] % size
    groups, rest = array[:, :whole], array[:, whole:]
    if len(array) == 1:
        return groups.reshape(-1, size, *array.shape[2:]), rest
    groups = groups.reshape(len(array), -1, size, *array.shape[2:])
    return jnp.moveaxis(groups, 1, 0), rest


def _with_axis(group: jax.Array, batch: int) -> jax.Array:
    return group[None] if batch == 1 else group


def _joined(function: Callable, array: jax.Array, size: int) -> jax.Array:
    """Applies a function of `[B, n, ...]` to groups of examples; gives `[B, N, ...]`."""
    if size == array.shape[1]:
        return function(array)
    groups, rest = _split(array, size)
    parts = lax.map(lambda group: function(_with_axis(group, len(array))), groups)
    joined = jnp.moveaxis(parts, 0, 1).reshape(len(array), -1, *parts.shape[3:])
    return jnp.concatenate([joined, function(rest)], axis=1) if rest.size else joined
