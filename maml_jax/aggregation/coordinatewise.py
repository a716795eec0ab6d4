"""Rules that work coordinate by coordinate on the per-task gradients."""

import jax
import jax.numpy as jnp

from maml_jax.aggregation.rule import Aggregation, Level


def trimmed_mean(trim: int) -> Aggregation:
    """Drops the largest and smallest values of each coordinate, then averages.

    Args:
      trim: how many of the valid tasks to drop at either end; static, at least 0. A
        meta-batch must have more than `2 * trim` valid tasks; at a step that has fewer,
        as many are dropped as leave one.

    Returns:
      An aggregation of level FULL, on the scale of the mean. Up to `trim` tasks cannot
      move it without bound.

    Raises:
      ValueError: if `trim` is negative; at the outer step, if it has at most `2 * trim`
        tasks.

    References:
      Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards
      Optimal Statistical Rates", ICML 2018, definition 2; https://arxiv.org/abs/1803.01498

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads = jnp.array([[1.0], [2.0], [100.0]])
      >>> print(mj.aggregation.aggregate(mj.aggregation.trimmed_mean(1), grads))
      [2.]
    """
    if trim < 0:
        raise ValueError(f"trim must be at least 0, got {trim}.")

    def combine(task_grads, evidence, state):
        count = evidence.num_valid
        dropped = jnp.minimum(trim, jnp.maximum(count - 1, 0) // 2)
        ranks = jnp.arange(len(evidence.valid))
        kept = (ranks >= dropped) & (ranks < count - dropped)

        def along_tasks(flags, leaf):
            return flags.reshape(-1, *[1] * (leaf.ndim - 1))

        def reduce(leaf):
            valid = along_tasks(evidence.valid, leaf)
            # Invalid tasks sort behind all others, where `kept` never reaches.
            ordered = jnp.sort(jnp.where(valid, leaf, jnp.inf), axis=0)
            total = jnp.where(along_tasks(kept, leaf), ordered, 0).sum(axis=0)
            return (total / jnp.maximum(kept.sum(), 1)).astype(leaf.dtype)

        return jax.tree.map(reduce, task_grads), state

    return Aggregation(
        name=f"trimmed_mean({trim})", level=Level.FULL, combine=combine, min_tasks=2 * trim + 1
    )
