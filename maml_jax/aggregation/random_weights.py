"""Random weights: the baseline that every clever weighting has to beat."""

import jax
import jax.numpy as jnp

from maml_jax.aggregation.rule import Aggregation, Level


def random_weights(seed: int = 0) -> Aggregation:
    """Weighs tasks at random, anew at every step: coefficients softmax(z), zᵢ ~ N(0, 1).

    Args:
      seed: of the weights; step s draws with `fold_in(key(seed), s)`.

    Returns:
      An aggregation of level STATIC, on the scale of the mean, unbiased for the mean.

    References:
      Lin, Ye, Zhang, Tsang, "Reasonable Effectiveness of Random Weighting: A Litmus Test for
      Multi-Task Learning", TMLR 2022; https://arxiv.org/abs/2111.10603

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import maml_jax as mj
      >>> rule = mj.aggregation.random_weights()
      >>> print(mj.aggregation.aggregate(rule, jnp.ones((4, 1)), key=jax.random.key(1)).round(3))
      [1.]
    """

    def coefficients(evidence, state):
        scores = jax.random.normal(evidence.key, evidence.valid.shape)
        weights = jnp.where(evidence.valid, jnp.exp(scores), 0)
        return evidence.over_valid(weights, weights.sum()), state

    return Aggregation(
        name="random_weights", level=Level.STATIC, coefficients=coefficients, seed=seed
    )
