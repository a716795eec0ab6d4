"""Rules that look at the query losses: risk-averse and risk-seeking objectives."""

import jax.numpy as jnp

from maml_jax.aggregation.rule import Aggregation, Level


def tilted(tilt: float) -> Aggregation:
    """Weighs tasks by the exponential of their loss (TERM).

    The gradient of (1/t) log mean exp(t ℓᵢ): coefficients softmax(t ℓ) over the valid tasks.

    Args:
      tilt: t, in 1/nats. Above 0 looks at the worst tasks, below 0 ignores outliers; 0 is
        the mean. Finite.

    Returns:
      An aggregation of level LOSS, on the scale of the mean.

    Raises:
      ValueError: if `tilt` is not finite.

    References:
      Li, Beirami, Sanjabi, Smith, "Tilted Empirical Risk Minimization", ICLR 2021,
      equation 2 and lemma 1; https://arxiv.org/abs/2007.01162

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads, losses = jnp.array([[1.0], [3.0]]), jnp.array([0.0, 1.0])
      >>> rule = mj.aggregation.tilted(100.0)
      >>> print(mj.aggregation.aggregate(rule, grads, losses=losses))
      [3.]
    """
    if not abs(tilt) < float("inf"):
        raise ValueError(f"tilt must be finite, got {tilt}.")

    def coefficients(evidence, state):
        exponents = jnp.where(evidence.valid, tilt * evidence.losses, -jnp.inf)
        # With no valid task the largest is -inf, and -inf - -inf is NaN.
        largest = jnp.where(evidence.valid.any(), exponents.max(), 0.0)
        weights = jnp.exp(exponents - largest)
        return evidence.over_valid(weights, weights.sum()), state

    return Aggregation(name=f"tilted({tilt})", level=Level.LOSS, coefficients=coefficients)
