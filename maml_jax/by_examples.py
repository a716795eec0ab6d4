"""A function of each example alone, applied to a few examples at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def by_examples(
    function: Callable[[jax.Array], jax.Array], x: jax.Array, size: int, *, add: bool = False
) -> jax.Array:
    """Applies a function to groups of examples, so that what it makes stays in a CPU's cache.

    On other devices all examples are one group. A backward pass starts from `x`: nothing that is
    made on the way is kept, but made again. Fewer examples than two groups are not worth it: this
    is `function(x)` then.

    Args:
      function: of examples `[n, ...]`, whatever n is; differentiable.
      x: examples `[N, ...]`.
      size: n on a CPU, at least 1; fewer are left for the last group.
      add: whether the results of the groups are added up; else they are joined.

    Returns:
      `[N, ...]`; with `add`, the sum of what the function gives of each group.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax.by_examples import by_examples
      >>> by_examples(jnp.square, jnp.arange(5), 2).tolist()
      [0, 1, 4, 9, 16]
    """
    if 2 * size > len(x):
        return function(x)

    def in_groups(x):
        whole = len(x) - len(x) % size
        groups = x[:whole].reshape(-1, size, *x.shape[1:])
        parts = lax.map(jax.checkpoint(function), groups)
        first = parts.sum(0) if add else parts.reshape(-1, *parts.shape[2:])
        if whole == len(x):
            return first
        last = jax.checkpoint(function)(x[whole:])
        return first + last if add else jnp.concatenate([first, last])

    return jax.checkpoint(lambda x: lax.platform_dependent(x, cpu=in_groups, default=function))(x)
