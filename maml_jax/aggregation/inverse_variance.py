"""Weights by reliability: the least variance when all tasks share one mean gradient."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maml_jax.aggregation.rule import Aggregation, Level
from maml_jax.tasks import Task


def inverse_variance(
    noise: Callable[[Task], jax.Array] | None = None, *, between: float | None = None
) -> Aggregation:
    """Weighs tasks by the inverse variance of their gradients (random effects).

    cᵢ ∝ 1 / (τ² + σᵢ²), with σᵢ² the noise of task i's own gradient, from its finite query
    set, and τ² the variance between the gradients of tasks, all in units of ‖g‖². Of all
    unbiased linear combinations it has the least variance if the tasks have one mean gradient;
    if those with little noise differ from the others, it is biased towards them.

    Leaving τ² out (`between=0`) trusts large tasks too much wherever tasks really differ, which
    is usual in meta-learning.

    Args:
      noise: `task -> σ²`, a scalar computed on the device for each task. None: estimated from
        two halves of each query set (`maml_jax.query_halves`), at about twice the cost of a
        step; the number of query examples must then be even.
      between: τ², at least 0. None: estimated at every step as
        max(0, mean ‖gᵢ‖² - mean_{i≠j} ⟨gᵢ, gⱼ⟩ - mean σᵢ²).

    Returns:
      An aggregation on the scale of the mean: of level STATIC if both are given, NORMS if only
      `between` is, else GRAM.

    Raises:
      ValueError: if `between` is negative or not finite.

    References:
      DerSimonian, Laird, "Meta-analysis in clinical trials", Controlled Clinical Trials, 1986,
      of which the estimate of τ² is the unweighted form, in vectors.

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> rule = mj.aggregation.inverse_variance(between=1.0)
      >>> grads, noise = jnp.array([[0.0], [5.0]]), jnp.array([0.0, 3.0])
      >>> print(mj.aggregation.aggregate(rule, grads, noise=noise))
      [1.]
    """
    if between is not None and not 0 <= between < math.inf:
        raise ValueError(f"between must be at least 0 and finite, got {between}.")

    def coefficients(evidence, state):
        own = evidence.noise if noise is None else evidence.traits
        own = jnp.maximum(jnp.where(evidence.valid, own, 0), 0)
        total = own + (_between(evidence, own) if between is None else between)
        # Where all is exact there is nothing to choose by: equal weights, as the limit gives.
        largest = total.max()
        total = jnp.where(largest > 0, total / jnp.where(largest > 0, largest, 1), 1)
        precision = 1 / jnp.maximum(total, jnp.finfo(total.dtype).eps)
        return evidence.over_valid(precision, jnp.where(evidence.valid, precision, 0).sum()), state

    level = Level.GRAM if between is None else Level.STATIC if noise else Level.NORMS
    return Aggregation(
        name="inverse_variance" if between is None else f"inverse_variance(between={between})",
        level=level,
        coefficients=coefficients,
        trait=noise,
        splits_queries=noise is None,
    )


def _between(evidence: Any, own: jax.Array) -> jax.Array:
    """Estimates τ² without bias before it is cut off at 0; 0 for one task."""
    count = evidence.num_valid
    diagonal = jnp.trace(evidence.gram)
    pairs = jnp.maximum(count * (count - 1), 1)
    total = diagonal / jnp.maximum(count, 1) - (evidence.gram.sum() - diagonal) / pairs
    estimate = jnp.maximum(total - own.sum() / jnp.maximum(count, 1), 0)
    return jnp.where(count > 1, estimate, 0)
