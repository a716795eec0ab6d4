"""Importance weights: tasks come from another distribution than the one that matters."""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from maml_jax.aggregation.linear import average_weight_state, contraction
from maml_jax.aggregation.rule import Aggregation, Level
from maml_jax.tasks import Task


def importance(
    log_ratio: Callable[[Task], jax.Array] | None = None,
    *,
    normalize: Literal["ema", "weights", "count"] = "ema",
    clip: float = math.inf,
) -> Aggregation:
    """Weighs tasks by prior knowledge of how often they should occur.

    With wᵢ = p_target(task i) / p_train(task i), Σᵢ min(wᵢ, clip) gᵢ / Z is the gradient of
    the loss averaged over the target distribution: another objective, not a better estimate
    of the same one.

    Args:
      log_ratio: `task -> log w`, a scalar in nats, computed on the device for each task. None:
        the caller gives w as `weights=` at every update.
      normalize: Z. "count": the number n of valid tasks, unbiased, but a batch of heavy tasks
        makes a large step; "weights": Σ w, no such steps, but biased by O(1/n) towards the
        training distribution; "ema": n times a running mean of the weights, with little of
        either.
      clip: the largest weight that counts, above 0; bounds the variance and adds bias.

    Returns:
      An aggregation of level STATIC, on the scale of the mean for weights of mean 1.

    Raises:
      ValueError: if `normalize` is unknown or `clip` is not above 0.

    References:
      Cai, Sheth, Mackey, Fusi, "Weighted Meta-Learning", 2020, for weights of source tasks
      towards a target; https://arxiv.org/abs/2003.09465. Kong, "A Note on Importance Sampling
      using Standardized Weights", University of Chicago, 1992, for `effective_tasks`.

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> rule = mj.aggregation.importance(normalize="count", clip=4.0)
      >>> grads, ratios = jnp.array([[1.0], [3.0]]), jnp.array([0.5, 9.0])
      >>> print(mj.aggregation.aggregate(rule, grads, weights=ratios))
      [6.25]
    """
    known = ("ema", "weights", "count")
    if normalize not in known:
        raise ValueError(f"normalize must be one of {list(known)}, got {normalize!r}.")
    if not clip > 0:
        raise ValueError(f"clip must be above 0, got {clip}.")

    def coefficients(evidence, state):
        if log_ratio is None:
            weights = jnp.minimum(evidence.weights, clip)
        else:
            weights = jnp.exp(jnp.minimum(evidence.traits, math.log(clip)))
        return contraction(weights, evidence, state, normalize)

    return Aggregation(
        name=f"importance({normalize!r})",
        level=Level.STATIC,
        coefficients=coefficients,
        init=average_weight_state if normalize == "ema" else tuple,
        uses_weights=log_ratio is None,
        needs_weights=log_ratio is None,
        trait=log_ratio,
    )
