"""Pooling of 2x2 windows, with derivatives that cost one pass over the inputs.

An odd last row or column is left out. Differentiable to any order, forwards and backwards.
"""

import jax
import jax.numpy as jnp
from jax import lax


def max_pool(x: jax.Array) -> jax.Array:
    """Takes the largest of each 2x2 window.

    The derivative goes to one of the entries: at ties to the lower, then to the right one.

    Args:
      x: images `[N, H, W, C]`.

    Returns:
      `[N, H // 2, W // 2, C]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from maml_jax.pooling import max_pool
      >>> x = jnp.array([[1.0, 2.0], [4.0, 3.0]]).reshape(1, 2, 2, 1)
      >>> print(jax.grad(lambda x: max_pool(x).sum())(x).reshape(2, 2))
      [[0. 0.]
       [1. 0.]]
    """
    return _larger(_larger(_windows(x)))


def mean_pool(x: jax.Array) -> jax.Array:
    """Averages each 2x2 window.

    Args:
      x: images `[N, H, W, C]`.

    Returns:
      `[N, H // 2, W // 2, C]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax.pooling import mean_pool
      >>> mean_pool(jnp.arange(4.0).reshape(1, 2, 2, 1)).item()
      1.5
    """
    return _windows(x).mean((2, 4))


def _windows(x: jax.Array) -> jax.Array:
    """Splits height and width: `[N, H // 2, 2, W // 2, 2, C]`."""
    height, width = x.shape[1] // 2, x.shape[2] // 2
    even = x[:, : 2 * height, : 2 * width]
    return even.reshape(len(x), height, 2, width, 2, x.shape[3])


@jax.custom_jvp
def _larger(pairs: jax.Array) -> jax.Array:
    """Takes the larger along the axis of two that comes first: axis 2, then axis 3."""
    first, second = _pair(pairs)
    return jnp.where(first > second, first, second)


@_larger.defjvp
def _larger_jvp(primals, tangents):
    # The derivative of two slices would be two padded arrays, added up: five times slower on one
    # CPU core. That of `jnp.max` divides by how many inputs equal the maximum; where XLA recomputes
    # one side with another rounding, none does: NaN, at xla_backend_optimization_level 0.
    (pairs,), (tangent,) = primals, tangents
    first, second = _pair(pairs)
    axis = _axis(pairs)
    is_first = lax.broadcasted_iota(jnp.int32, pairs.shape, axis) == 0
    chosen = jnp.expand_dims(first > second, axis) == is_first
    return jnp.where(first > second, first, second), jnp.where(chosen, tangent, 0).sum(axis)


def _pair(pairs):
    axis = _axis(pairs)
    return tuple(lax.index_in_dim(pairs, i, axis, keepdims=False) for i in range(2))


def _axis(pairs):
    return 2 if pairs.ndim == 6 else 3
