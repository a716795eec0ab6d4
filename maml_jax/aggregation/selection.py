"""Rules that choose among the task gradients."""

import jax.numpy as jnp

from maml_jax.aggregation.rule import Aggregation, Level


def krum(num_byzantine: int, num_selected: int = 1) -> Aggregation:
    """Averages the gradients that have the closest neighbours (Krum, Multi-Krum).

    Task i's score is the sum of ‖gᵢ - gⱼ‖² over its n - f - 2 nearest other tasks, and the m
    tasks of least score are averaged; of equal scores the earlier task's counts as less.

    Args:
      num_byzantine: f, how many tasks may be arbitrarily wrong; static, at least 0. The paper's
        guarantee needs n > 2 f + 2 valid tasks.
      num_selected: m; static, at least 1. 1 is Krum. With f = 0 and m = n it is the mean.

    Returns:
      An aggregation of level GRAM, on the scale of the mean, which averages m gradients only:
      its variance is n/m times the mean's. n is the number of valid tasks; at a step with too
      few, one neighbour or min(m, n) tasks are taken. O(T² log T).

    Raises:
      ValueError: if a number is out of range; at the outer step, if it has less than
        max(f + 3, m) tasks.

    References:
      Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine
      Tolerant Gradient Descent", NeurIPS 2017, sections 4 and 5;
      https://proceedings.neurips.cc/paper/2017/hash/f4b9ec30ad9f68f89b29639786cb62ef-Abstract.html

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads = jnp.array([[1.0], [1.5], [2.5], [100.0]])
      >>> got = mj.aggregation.aggregate(mj.aggregation.krum(1, num_selected=3), grads)
      >>> print(jnp.array_str(got, precision=3))
      [1.667]
    """
    if num_byzantine < 0:
        raise ValueError(f"num_byzantine must be at least 0, got {num_byzantine}.")
    if num_selected < 1:
        raise ValueError(f"num_selected must be at least 1, got {num_selected}.")

    def coefficients(evidence, state):
        valid, count = evidence.valid, evidence.num_valid
        scale = jnp.diagonal(evidence.gram).max()
        products = evidence.gram / jnp.where(scale > 0, scale, 1)
        squares = jnp.diagonal(products)
        distances = jnp.maximum(squares[:, None] + squares[None] - 2 * products, 0)
        others = valid[:, None] & valid[None] & ~jnp.eye(len(valid), dtype=bool)
        nearest = jnp.sort(jnp.where(others, distances, jnp.inf), axis=1)
        num_neighbours = jnp.clip(count - num_byzantine - 2, 1, jnp.maximum(count - 1, 1))
        near = jnp.arange(len(valid)) < num_neighbours
        scores = jnp.where(near[None], nearest, 0).sum(axis=1)
        # Stable, and the only valid task has no neighbour: invalid ones still sort behind it.
        order = jnp.lexsort((scores, ~valid))
        ranks = jnp.zeros_like(order).at[order].set(jnp.arange(len(valid)))
        chosen = (valid & (ranks < num_selected)).astype(products.dtype)
        return evidence.over_valid(chosen, chosen.sum()), state

    return Aggregation(
        name=f"krum({num_byzantine}, {num_selected})",
        level=Level.GRAM,
        coefficients=coefficients,
        min_tasks=max(num_byzantine + 3, num_selected),
    )
