"""How far the gradients of a meta-batch agree: second moments, and what follows from them.

With n gradients gᵢ,  a = mean ‖gᵢ‖²,  q = ‖mean gᵢ‖²  and  o = (n q - a) / (n - 1), the mean
inner product of two different ones. If they are independent with mean μ and total variance σ²,
E a = ‖μ‖² + σ² and E o = ‖μ‖²; noise that all tasks of a meta-batch share looks like signal.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from maml_jax.aggregation import ladder


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """Second moments of the gradients of one meta-batch.

    Attributes:
      num_tasks: n, how many count; at least 1.
      mean_square: a, mean ‖gᵢ‖².
      square_mean: q, ‖mean gᵢ‖².

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax.spread import Spread
      >>> orthogonal = Spread(num_tasks=4, mean_square=jnp.array(1.0), square_mean=jnp.array(0.25))
      >>> print(orthogonal.gain, orthogonal.divisor, orthogonal.coherence)
      4.0 1.0 0.0
    """

    num_tasks: Any
    mean_square: jax.Array
    square_mean: jax.Array

    @property
    def gain(self) -> jax.Array:
        """AdaScale's r = a / q: 1 for identical gradients, n for orthogonal ones."""
        return jnp.where(self.mean_square > 0, self.mean_square / self.square_mean, 1.0)

    @property
    def divisor(self) -> jax.Array:
        """D = n / r = ‖Σ gᵢ‖² / Σ ‖gᵢ‖²: by what AdaScale divides the sum."""
        return self.num_tasks / self.gain

    @property
    def coherence(self) -> jax.Array:
        """κ = o / a = (D - 1) / (n - 1), in [-1 / (n - 1), 1]; 1 for one task."""
        others = jnp.maximum(self.num_tasks - 1, 1)
        return jnp.where(self.num_tasks > 1, (self.divisor - 1) / others, 1.0)

    @property
    def signal(self) -> jax.Array:
        """The estimate o of ‖μ‖²; may come out negative. q for one task."""
        others = jnp.maximum(self.num_tasks - 1, 1)
        apart = (self.num_tasks * self.square_mean - self.mean_square) / others
        return jnp.where(self.num_tasks > 1, apart, self.square_mean)

    @property
    def variance(self) -> jax.Array:
        """The estimate a - o of σ², at least 0; 0 for one task."""
        return jnp.maximum(self.mean_square - self.signal, 0)


def spread_of(task_grads: Any, valid: jax.Array) -> Spread:
    """Measures the spread of per-task gradients that are held.

    Args:
      task_grads: tree `[T, ...]`; what invalid tasks hold is ignored.
      valid: booleans `[T]`, the tasks that count.

    Returns:
      The spread.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax.spread import spread_of
      >>> print(spread_of(jnp.ones((3, 2)), jnp.ones(3, bool)).gain)
      1.0
    """
    task_grads = ladder.zero_invalid(task_grads, valid)
    count = jnp.maximum(valid.sum(), 1)
    average = ladder.contract(valid / count, task_grads)
    mean_square = ladder.sq_norms(task_grads).sum() / count
    square_mean = sum(
        jnp.square(leaf.astype(mean_square.dtype)).sum() for leaf in jax.tree.leaves(average)
    )
    return Spread(num_tasks=count, mean_square=mean_square, square_mean=jnp.asarray(square_mean))
