"""The geometric median: a robust mean that no coordinate system decides."""

import jax
import jax.numpy as jnp

from maml_jax.aggregation.rule import Aggregation, Level


def geometric_median(num_iterations: int = 32) -> Aggregation:
    """Takes the point with the least sum of distances to the task gradients.

    argmin_z Σᵢ ‖gᵢ - z‖ by Weiszfeld's iteration. The point is always Σᵢ cᵢ gᵢ, so the
    iteration runs on c with the Gram matrix G alone: ‖gᵢ - z‖² = Gᵢᵢ - 2 (G c)ᵢ + cᵀ G c.

    Args:
      num_iterations: Weiszfeld steps from the mean; static, at least 1.

    Returns:
      An aggregation of level GRAM, on the scale of the mean. Less than half of the tasks
      cannot move it without bound.

    Raises:
      ValueError: if `num_iterations` is below 1.

    References:
      Weiszfeld, "Sur le point pour lequel la somme des distances de n points donnés est
      minimum", Tôhoku Mathematical Journal, 1937. Pillutla, Kakade, Harchaoui, "Robust
      Aggregation for Federated Learning", 2022, algorithm 2 for the smoothed distances;
      https://arxiv.org/abs/1912.13445. Our floor on the distances is relative to the
      gradients, which keeps the rule of degree 1 in them.

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads = jnp.array([[1.0], [1.0], [100.0]])
      >>> print(mj.aggregation.aggregate(mj.aggregation.geometric_median(), grads).round(3))
      [1.]
    """
    if num_iterations < 1:
        raise ValueError(f"num_iterations must be at least 1, got {num_iterations}.")

    def coefficients(evidence, state):
        valid = evidence.valid
        # Scaled to a largest entry of 1, so that neither huge nor tiny gradients underflow.
        scale = jnp.diagonal(evidence.gram).max()
        products = evidence.gram / jnp.where(scale > 0, scale, 1)
        precision = jnp.finfo(products.dtype)

        def normalise(weights):
            return evidence.over_valid(weights, jnp.where(valid, weights, 0).sum())

        def step(_, point):
            towards = products @ point
            added = jnp.diagonal(products) + point @ towards
            # A difference of squares this size is no more exact than eps times their sum.
            floor = precision.eps * added + precision.tiny
            return normalise(1 / jnp.sqrt(jnp.maximum(added - 2 * towards, floor)))

        start = normalise(jnp.ones_like(products[0]))
        return jax.lax.fori_loop(0, num_iterations, step, start), state

    return Aggregation(
        name=f"geometric_median({num_iterations})", level=Level.GRAM, coefficients=coefficients
    )
