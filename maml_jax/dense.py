"""The product of a dense layer with kernels that differ per task.

It is the convolution of `maml_jax.bilinear` without a spatial dimension, so that it too stays
a product at every order of differentiation, and has forms of its own on a CPU.
"""

from typing import Any

import jax
from jax import lax

from maml_jax import bilinear

_PLAIN = (((1,), (0,)), ((), ()))


def dot_general(
    lhs: jax.Array,
    rhs: jax.Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
    **options: Any,
) -> jax.Array:
    """Multiplies matrices; a drop-in for `lax.dot_general`, such as flax takes for `nn.Dense`.

    `y[n, o] = sum_i x[n, i] W[i, o]`. Other products than of two matrices of one dtype go to
    `lax.dot_general` as they are.

    Args:
      lhs: inputs x, `[N, I]`.
      rhs: kernel W, `[I, O]`.
      dimension_numbers: as in `lax.dot_general`.
      precision: as in `lax.dot_general`; a pair falls back.
      preferred_element_type: dtype of the result; another than that of `lhs` falls back.
      **options: further arguments of `lax.dot_general`; a value other than None falls back.

    Returns:
      The outputs y, `[N, O]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import linen as nn
      >>> from maml_jax.dense import dot_general
      >>> layer = nn.Dense(8, dot_general=dot_general)
      >>> layer.init_with_output(jax.random.key(0), jnp.zeros((5, 3)))[0].shape
      (5, 8)
    """
    plain = (
        lhs.ndim == rhs.ndim == 2
        and _as_tuples(dimension_numbers) == _PLAIN
        and bilinear.supports(lhs, rhs, precision, preferred_element_type, options)
    )
    if not plain:
        return lax.dot_general(
            lhs, rhs, dimension_numbers, precision, preferred_element_type, **options
        )
    geometry = bilinear.Geometry((), (), (), (), (), precision)
    return bilinear.conv(lhs[None], rhs[None], geometry=geometry)[0]


def _as_tuples(numbers: Any) -> Any:
    return tuple(tuple(tuple(axes) for axes in pair) for pair in numbers)
