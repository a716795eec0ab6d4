"""Over which axes of `jax.shard_map` an array varies, for primitives of two arrays."""

from typing import Any

import jax
from jax import lax


def alike(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inside `jax.shard_map`, says of both arrays that they vary where either does.

    Args:
      a: an array.
      b: another.

    Returns:
      Both; outside of `jax.shard_map` as they are.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax.varying import alike
      >>> print(*alike(jnp.ones(2), jnp.zeros(())))
      [1. 1.] 0.0
    """
    over = [_axes_of(array) for array in (a, b)]
    missing = [tuple((over[0] | over[1]) - axes) for axes in over]
    a = lax.pcast(a, missing[0], to="varying") if missing[0] else a
    b = lax.pcast(b, missing[1], to="varying") if missing[1] else b
    return a, b


def _axes_of(array: jax.Array) -> frozenset:
    kind: Any = jax.typeof(array)
    return kind.vma if hasattr(kind, "vma") else kind.mat.varying  # The latter from JAX 0.12.
