"""Weights by the complexity of a task: a curriculum, or a push towards what is hard."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from maml_jax.aggregation.rule import Aggregation, Level
from maml_jax.tasks import Task


def by_complexity(
    complexity: Literal["support_loss"] | Callable[[Task], jax.Array] = "support_loss",
    *,
    exponent: float = 1.0,
) -> Aggregation:
    """Weighs each task by a power of its complexity: Σᵢ κᵢᵖ gᵢ / Σᵢ κᵢᵖ.

    This changes the objective, as all weights that depend on the task do.

    Args:
      complexity: "support_loss", the loss on the support set before adaptation: how far the
        task is from the meta-parameters. Or `task -> κ`, a scalar of at least 0 computed on the
        device for each task, such as its number of classes.
      exponent: p; above 0 for the complex tasks, below 0 for the simple ones, 0 gives the
        mean. Finite.

    Returns:
      An aggregation on the scale of the mean, of level LOSS for "support_loss", else STATIC.

    Raises:
      ValueError: if `complexity` is neither, or the exponent is not finite; at the outer step,
        if an inner loop of no step leaves no support loss.

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads, losses = jnp.array([[1.0], [3.0]]), jnp.array([0.5, 1.5])
      >>> rule = mj.aggregation.by_complexity()
      >>> print(mj.aggregation.aggregate(rule, grads, losses=losses, support_losses=losses))
      [2.5]
    """
    if complexity != "support_loss" and not callable(complexity):
        raise ValueError(
            f"complexity must be 'support_loss' or a function of a task, got {complexity!r}."
        )
    if not abs(exponent) < float("inf"):
        raise ValueError(f"exponent must be finite, got {exponent}.")

    def coefficients(evidence, state):
        values = evidence.traits if callable(complexity) else evidence.support_losses
        if values is None:
            raise ValueError(
                "by_complexity('support_loss') needs support losses: take an inner loop of at "
                "least 1 step, or pass support_losses= to aggregate."
            )
        values = jnp.where(evidence.valid, values, 0)
        # The largest scales out; the floor keeps a negative power of 0 finite.
        largest = jnp.maximum(values.max(), jnp.finfo(values.dtype).tiny)
        relative = jnp.maximum(values / largest, jnp.finfo(values.dtype).eps)
        weights = jnp.where(evidence.valid, relative**exponent, 0)
        return evidence.over_valid(weights, weights.sum()), state

    own = callable(complexity)
    return Aggregation(
        name=f"by_complexity({exponent})",
        level=Level.STATIC if own else Level.LOSS,
        coefficients=coefficients,
        trait=complexity if own else None,
    )
