"""The least combination of the task gradients: descent of all tasks at once."""

import jax.numpy as jnp

from maml_jax.aggregation.rule import Aggregation, Level
from maml_jax.aggregation.small_problems import nonnegative_minimum, per_length, unit_rows


def mgda() -> Aggregation:
    """Takes the shortest convex combination of the task gradients (MGDA).

    g* = Σᵢ cᵢ gᵢ with c = argmin cᵀ G c over cᵢ ≥ 0, Σᵢ cᵢ = 1. For all tasks
    ⟨gᵢ, g*⟩ ≥ ‖g*‖², so -g* descends on each, and g* = 0 where none can gain without another's
    loss. It is never longer than the shortest gradient: small tasks decide. A task whose
    gradient is 0 makes it 0.

    The minimum is exact, by pivoting: c is in proportion to the minimiser of xᵀ G x + σ (Σx - 1)²
    over x ≥ 0, for any σ > 0.

    Returns:
      An aggregation of level GRAM, on the scale of the mean. The solution takes O(T²) for each
      positive coefficient. Where 0 is a convex combination, the result is 0 up to √eps times the
      shortest gradient's length, 3e-4 in float32 and 1e-8 in float64.

    References:
      Désidéri, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization",
      Comptes Rendus Mathématique, 2012; https://doi.org/10.1016/j.crma.2012.03.014. Sener,
      Koltun, "Multi-Task Learning as Multi-Objective Optimization", NeurIPS 2018, whose
      algorithm 2 approaches the same minimum by Frank-Wolfe; https://arxiv.org/abs/1810.04650

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads = jnp.array([[2.0, 0.0], [0.0, 1.0]])
      >>> got = mj.aggregation.aggregate(mj.aggregation.mgda(), grads)
      >>> print(jnp.array_str(got, precision=3))
      [0.4 0.8]
    """

    def coefficients(evidence, state):
        lengths, cosines = unit_rows(evidence.gram)
        at_rest = evidence.valid & (lengths == 0)
        shortest = jnp.where(lengths > 0, lengths, jnp.inf).min()
        # The gradients, each with one more coordinate √σ; σ is the shortest one's square.
        shares = per_length(jnp.where(lengths > 0, shortest, 0), lengths)
        lift = shares / jnp.sqrt(1 + jnp.square(shares))
        rest = 1 / jnp.sqrt(1 + jnp.square(shares))
        lifted = cosines * rest[:, None] * rest[None] + lift[:, None] * lift[None]
        point = nonnegative_minimum(lifted, -lift, size=1.0) * lift
        convex = evidence.over_valid(point, point.sum())
        resting = evidence.over_valid(at_rest.astype(point.dtype), at_rest.sum())
        return jnp.where(at_rest.any(), resting, convex), state

    return Aggregation(name="mgda", level=Level.GRAM, coefficients=coefficients)
