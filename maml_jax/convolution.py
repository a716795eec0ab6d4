"""A convolution that stays a matrix product when kernels differ per task.

In MAML every task has its own kernels. `jax.vmap` turns a convolution with a batch of
kernels into a grouped convolution, which XLA runs badly; a matrix product with a batch
of kernels is a batched matrix product, which it runs well, at every order of
differentiation. See https://github.com/jax-ml/jax/issues/13800.

In shapes, `N` is the number of examples, `H` and `W` the height and width of the
inputs, `h` and `w` those of the kernel, `I` and `O` the numbers of input and output
channels.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from maml_jax import bilinear

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
    """Convolves fast for per-task kernels; a drop-in for `lax.conv_general_dilated`.

    `y[n, p, o] = sum_{k, i} x[n, stride * p + dilation * k, i] W[k, i, o]`, for positions p
    of the output and k of the kernel: the `h * w` shifted slices of the padded inputs are
    concatenated on the channels, and one product with the kernel, reshaped to
    `[h * w * I, O]`, does the rest. It and all its derivatives are in `maml_jax.bilinear`; a
    CPU has forms of its own, in `maml_jax.convolution_cpu`.

    The arguments are those of `lax.conv_general_dilated`, positions included, so that
    flax takes it as it is: `nn.Conv(..., conv_general_dilated=convolution)`.

    Written as a product: one and two spatial dimensions, channels last
    ("NWC"/"WIO", "NHWC"/"HWIO", which is what flax uses), any stride and padding, dilated
    kernels, groups of channels. Dilated inputs, groups of the batch, other layouts, other
    ranks, mixed dtypes and empty outputs go to `lax.conv_general_dilated` as they are: the
    same values, without the speed, and its error messages.

    Differentiable to any order in both arrays, forwards and backwards. What is kept for a
    backward pass is inputs and kernel, not the slices, which are `h * w / (stride_h *
    stride_w)` times as large as the inputs.

    Args:
      lhs: inputs x, `[N, H, W, I]` or `[N, W, I]`.
      rhs: kernel W, `[h, w, I, O]` or `[w, I, O]`.
      window_strides: stride in each spatial dimension, at least 1; static.
      padding: "SAME", "VALID", "SAME_LOWER", or (before, after) for each spatial
        dimension, in pixels; negative crops; static.
      lhs_dilation: as in `lax.conv_general_dilated`; not 1 falls back to it.
      rhs_dilation: distance of two entries of the kernel in each spatial dimension, at
        least 1; None means 1; static.
      dimension_numbers: layouts, as in `lax.conv_general_dilated`. None means its
        default, channels first, which falls back to it.
      feature_group_count: number of groups of channels, each with kernels of its own, as in
        `lax.conv_general_dilated`; static.
      batch_group_count: as in `lax.conv_general_dilated`; not 1 falls back to it.
      precision: precision of the product, as in `lax.dot_general`; a pair falls back.
      preferred_element_type: dtype of the result; another than that of `lhs` falls back.
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
    plain = (
        all(d == 1 for d in lhs_dilation or ())
        and batch_group_count == 1
        and bilinear.supports(lhs, rhs, precision, preferred_element_type, options)
    )
    if plain and _is_channels_last(lhs, rhs, dimension_numbers, feature_group_count):
        sizes = (lhs.shape[1:-1], rhs.shape[:-2], window_strides, padding, rhs_dilation)
        geometry = geometry_of(*sizes, precision=precision)
        if min(geometry.outputs) > 0:
            return _grouped(lhs, rhs, geometry, feature_group_count)
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


def _is_channels_last(lhs: jax.Array, rhs: jax.Array, dimension_numbers: Any, groups: int) -> bool:
    """Whether both arrays are channels last, in one or two dimensions, and agree."""
    layout = _CHANNELS_LAST.get(lhs.ndim)
    if layout is None or rhs.ndim != lhs.ndim or dimension_numbers is None:
        return False
    given = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    wanted = lax.conv_dimension_numbers(lhs.shape, rhs.shape, layout)
    # flax passes tuples, but a caller's ConvDimensionNumbers comes back as it is.
    same = all(tuple(a) == tuple(b) for a, b in zip(given, wanted, strict=True))
    channels = lhs.shape[-1] == groups * rhs.shape[-2] and rhs.shape[-1] % groups == 0
    return same and channels


def geometry_of(
    inputs: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    padding: str | _Pads,
    dilation: Sequence[int] | None = None,
    *,
    precision: Any = None,
) -> bilinear.Geometry:
    """Gives the static part of a convolution.

    Args:
      inputs: sizes of the inputs.
      window: sizes of the kernel.
      strides: as `convolution` takes them.
      padding: likewise.
      dilation: of the kernel, likewise.
      precision: likewise.

    Returns:
      The geometry, with a number for each padding.
    """
    dilation = tuple(dilation or (1,) * len(window))
    if isinstance(padding, str):
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, window, strict=True)]
        padding = lax.padtype_to_pads(inputs, reach, strides, padding)
    return bilinear.Geometry(
        inputs=tuple(inputs),
        window=tuple(window),
        strides=tuple(strides),
        pads=tuple((int(before), int(after)) for before, after in padding),
        dilation=dilation,
        precision=precision,
    )


def _grouped(lhs: jax.Array, rhs: jax.Array, geometry: bilinear.Geometry, groups: int) -> jax.Array:
    """Convolves each group of channels with its own kernels, as products side by side."""
    if groups == 1:
        return bilinear.conv(lhs[None], rhs[None], geometry=geometry)[0]
    lhs = lhs.reshape(*lhs.shape[:-1], groups, -1)
    rhs = rhs.reshape(*rhs.shape[:-1], groups, -1)
    own = (jnp.moveaxis(lhs, -2, 0), jnp.moveaxis(rhs, -2, 0))
    out = jnp.moveaxis(bilinear.conv(*own, geometry=geometry), 0, -2)
    return out.reshape(*out.shape[:-2], -1)
