"""A convolution that stays a matrix product when kernels differ per task.

In MAML every task has its own kernels. `jax.vmap` turns a convolution with a batch of
kernels into a grouped convolution, which XLA runs badly; a matrix product with a batch
of kernels is a batched matrix product, which it runs well, at every order of
differentiation. See https://github.com/jax-ml/jax/issues/13800.

In shapes, `N` is the number of examples, `H` and `W` the height and width of the
inputs, `h` and `w` those of the kernel, `I` and `O` the numbers of input and output
channels.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_CHANNELS_LAST = {3: ("NWC", "WIO", "NWC"), 4: ("NHWC", "HWIO", "NHWC")}

_Pads = Sequence[tuple[int, int]]


def convolution(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | _Pads,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    **options: Any,
) -> jax.Array:
    """Convolves as one matrix product; a drop-in for `lax.conv_general_dilated`.

    `y[n, p, o] = sum_{k, i} x[n, stride * p + k, i] W[k, i, o]`, for positions p of the
    output and k of the kernel: the `h * w` shifted slices of the padded inputs are
    concatenated on the channels, and one product with the kernel, reshaped to
    `[h * w * I, O]`, does the rest. A kernel of 1 with stride 1 needs no slices.

    The arguments are those of `lax.conv_general_dilated`, positions included, so that
    flax takes it as it is: `nn.Conv(..., conv_general_dilated=convolution)`.

    Written as a product: one and two spatial dimensions, channels last
    ("NWC"/"WIO", "NHWC"/"HWIO", which is what flax uses), any stride and padding. Dilation,
    groups, other layouts, other ranks, mixed dtypes and empty outputs go to
    `lax.conv_general_dilated` as they are: the same values, without the speed, and its
    error messages.

    Differentiable to any order in both arrays, forwards and backwards. The slices are
    `h * w / (stride_h * stride_w)` times as large as the inputs, and are kept for the
    backward pass.

    Args:
      lhs: inputs x, `[N, H, W, I]` or `[N, W, I]`.
      rhs: kernel W, `[h, w, I, O]` or `[w, I, O]`.
      window_strides: stride in each spatial dimension, at least 1; static.
      padding: "SAME", "VALID", "SAME_LOWER", or (before, after) for each spatial
        dimension, in pixels; negative crops; static.
      lhs_dilation: as in `lax.conv_general_dilated`; not 1 falls back to it.
      rhs_dilation: as in `lax.conv_general_dilated`; not 1 falls back to it.
      dimension_numbers: layouts, as in `lax.conv_general_dilated`. None means its
        default, channels first, which falls back to it.
      feature_group_count: as in `lax.conv_general_dilated`; not 1 falls back to it.
      batch_group_count: as in `lax.conv_general_dilated`; not 1 falls back to it.
      precision: precision of the product, as in `lax.dot_general`.
      preferred_element_type: dtype of accumulation and result; None means that of `lhs`.
      **options: further arguments of `lax.conv_general_dilated`, such as
        `out_sharding`; a value other than None falls back to it.

    Returns:
      The outputs y, `[N, H', W', O]` or `[N, W', O]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from maml_jax.convolution import convolution
      >>> layer = nn.Conv(8, (3, 3), strides=2, conv_general_dilated=convolution)
      >>> y, _ = layer.init_with_output(jax.random.key(0), jnp.zeros((5, 28, 28, 1)))
      >>> y.shape
      (5, 14, 14, 8)
    """
    dilations_and_groups = (
        *(lhs_dilation or ()),
        *(rhs_dilation or ()),
        feature_group_count,
        batch_group_count,
    )
    plain = all(d == 1 for d in dilations_and_groups) and all(v is None for v in options.values())
    if plain and _is_channels_last(lhs, rhs, dimension_numbers):
        pads = _explicit_pads(lhs, rhs, window_strides, padding)
        sizes = _output_sizes(lhs, rhs, window_strides, pads)
        if min(sizes) > 0:
            patches = _patches(lhs, rhs.shape[:-2], window_strides, pads, sizes)
            # Measured on 2 shared, busy cores, float32, ms per task of a second-order MAML gradient
            # (Conv4 on 28x28x1, 5-way, 1 shot, 75 queries): flat matrices 68, contracting
            # [N, H', W', h * w * I] 88, in one noisy run. `jax.checkpoint` around this, which would
            # not keep the patches: 64 against 66, ratio 1.00 round by round, so it is left out.
            product = jnp.matmul(
                patches.reshape(-1, patches.shape[-1]),
                rhs.reshape(-1, rhs.shape[-1]),
                precision=precision,
                preferred_element_type=preferred_element_type,
            )
            return product.reshape(*patches.shape[:-1], rhs.shape[-1])
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        batch_group_count,
        precision,
        preferred_element_type,
        **options,
    )


def _is_channels_last(lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any) -> bool:
    """Whether both arrays are channels last, in one or two dimensions, and agree."""
    layout = _CHANNELS_LAST.get(lhs.ndim)
    if layout is None or rhs.ndim != lhs.ndim or dimension_numbers is None:
        return False
    given = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    wanted = lax.conv_dimension_numbers(lhs.shape, rhs.shape, layout)
    # flax passes tuples, but a caller's ConvDimensionNumbers comes back as it is.
    same = all(tuple(a) == tuple(b) for a, b in zip(given, wanted, strict=True))
    return same and lhs.dtype == rhs.dtype and lhs.shape[-1] == rhs.shape[-2]


def _explicit_pads(
    lhs: jax.Array, rhs: jax.Array, strides: Sequence[int], padding: str | _Pads
) -> _Pads:
    if isinstance(padding, str):
        return lax.padtype_to_pads(lhs.shape[1:-1], rhs.shape[:-2], strides, padding)
    return padding


def _output_sizes(
    lhs: jax.Array, rhs: jax.Array, strides: Sequence[int], pads: _Pads
) -> tuple[int, ...]:
    """Sizes of the output's spatial dimensions; not above 0 where nothing fits."""
    dimensions = zip(lhs.shape[1:-1], rhs.shape[:-2], strides, pads, strict=True)
    return tuple((n + sum(pad) - k) // stride + 1 for n, k, stride, pad in dimensions)


def _patches(
    lhs: jax.Array,
    window: tuple[int, ...],
    strides: Sequence[int],
    pads: _Pads,
    sizes: tuple[int, ...],
) -> jax.Array:
    """Concatenates the shifted slices that a window sees, `[N, H', W', h * w * I]`."""
    channels = lhs.shape[-1]
    zero = jnp.zeros((), lhs.dtype)
    padded = lax.pad(lhs, zero, ((0, 0, 0), *((*pad, 0) for pad in pads), (0, 0, 0)))
    if math.prod(window) == 1 and all(stride == 1 for stride in strides):
        return padded
    slices = []
    for start in itertools.product(*map(range, window)):
        stop = (
            a + stride * (n - 1) + 1 for a, n, stride in zip(start, sizes, strides, strict=True)
        )
        slices.append(
            lax.slice(padded, (0, *start, 0), (lhs.shape[0], *stop, channels), (1, *strides, 1))
        )
    return lax.concatenate(slices, lhs.ndim - 1)
