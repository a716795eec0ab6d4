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


def cvar(alpha: float) -> Aggregation:
    """Averages over the worst tasks only: the conditional value at risk of the losses.

    min_ν ν + (1/α) mean max(0, ℓᵢ - ν): the mean over the α n valid tasks of largest loss, the
    one at the boundary counting in part; tasks of equal loss there share it.

    Args:
      alpha: α, in (0, 1]; 1 is the mean, 1/n or less the worst task alone.

    Returns:
      An aggregation of level LOSS, on the scale of the mean. Of a finite meta-batch it is
      biased low against the value at risk of all tasks.

    Raises:
      ValueError: if α is not in (0, 1].

    References:
      Rockafellar, Uryasev, "Optimization of conditional value-at-risk", Journal of Risk, 2000.
      In meta-learning: Wang et al., "A Simple Yet Effective Strategy to Robustify the Meta
      Learning Paradigm", NeurIPS 2023.

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads = losses = jnp.array([1.0, 2.0, 3.0, 4.0])
      >>> print(mj.aggregation.aggregate(mj.aggregation.cvar(0.5), grads, losses=losses))
      3.5
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha must be in (0, 1], got {alpha}.")

    def coefficients(evidence, state):
        losses = jnp.where(evidence.valid, evidence.losses, -jnp.inf)
        mass = jnp.maximum(alpha * evidence.num_valid, 1)
        # Rounded up, but for what is a whole number save for rounding.
        place = jnp.ceil(mass * (1 - 4 * jnp.finfo(mass.dtype).eps)).astype(int) - 1
        boundary = jnp.sort(losses)[::-1][place]
        above = losses > boundary
        tied = (losses == boundary) & evidence.valid
        share = (mass - above.sum()) / jnp.maximum(tied.sum(), 1)
        return evidence.over_valid(jnp.where(tied, share, above), mass), state

    return Aggregation(name=f"cvar({alpha})", level=Level.LOSS, coefficients=coefficients)
