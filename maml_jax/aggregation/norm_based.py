"""Rules that look at the norms of the task gradients."""

from typing import Literal

import jax.numpy as jnp

from maml_jax.aggregation.rule import Aggregation, Level


def norm_clipped(threshold: float | Literal["median"] = "median") -> Aggregation:
    """Clips each task's gradient to a largest norm, then averages.

    (1/n) Σᵢ min(1, τ/‖gᵢ‖) gᵢ over the valid tasks. The cheapest robust rule.

    Args:
      threshold: τ, above 0, in units of the gradient; "median" takes the median norm of
        the meta-batch's valid tasks, which keeps the rule of degree 1 in the gradients.

    Returns:
      An aggregation of level NORMS, on the scale of the mean.

    Raises:
      ValueError: if the threshold is neither "median" nor above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads = jnp.array([[1.0], [1.0], [100.0]])
      >>> print(mj.aggregation.aggregate(mj.aggregation.norm_clipped(), grads))
      [1.]
    """
    if threshold != "median" and not (isinstance(threshold, int | float) and threshold > 0):
        raise ValueError(f"threshold must be 'median' or a number above 0, got {threshold!r}.")

    def coefficients(evidence, state):
        norms = jnp.sqrt(evidence.sq_norms)
        limit = _median(norms, evidence.valid) if threshold == "median" else threshold
        # A zero gradient needs no clipping; the inner `where` avoids 0/0.
        shrink = jnp.minimum(1.0, limit / jnp.where(norms == 0, 1.0, norms))
        shrink = jnp.where(norms == 0, 1.0, shrink)
        return evidence.over_valid(shrink, evidence.num_valid), state

    return Aggregation(
        name=f"norm_clipped({threshold!r})", level=Level.NORMS, coefficients=coefficients
    )


def normalized() -> Aggregation:
    """Averages the directions of the task gradients: (1/n) Σᵢ gᵢ / ‖gᵢ‖.

    Every task has the same say, whatever its loss's scale; a zero gradient has none. Of degree
    0: multiplying the losses changes nothing, so it is on the scale of no gradient, and the
    learning rate means the length of the step.

    Returns:
      An aggregation of level NORMS.

    References:
      Cortés, "Finite-time convergent gradient flows with applications to network consensus",
      Automatica, 2006, for one gradient.

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads = jnp.array([[0.0, 1.0], [100.0, 0.0]])
      >>> print(mj.aggregation.aggregate(mj.aggregation.normalized(), grads))
      [0.5 0.5]
    """

    def coefficients(evidence, state):
        norms = jnp.sqrt(evidence.sq_norms)
        inverse = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)
        return evidence.over_valid(inverse, evidence.num_valid), state

    return Aggregation(name="normalized", level=Level.NORMS, coefficients=coefficients)


def _median(values, valid):
    """Gives the median of the valid entries `[T]`; the mean of the middle two if even."""
    ordered = jnp.sort(jnp.where(valid, values, jnp.inf))
    count = valid.sum()
    low, high = jnp.maximum(count - 1, 0) // 2, count // 2
    return jnp.where(count > 0, (ordered[low] + ordered[jnp.minimum(high, count - 1)]) / 2, 0.0)
