"""Rules that work coordinate by coordinate on the per-task gradients."""

import jax
import jax.numpy as jnp

from maml_jax.aggregation.ladder import wide
from maml_jax.aggregation.rule import Aggregation, Level


def trimmed_mean(trim: int) -> Aggregation:
    """Drops the largest and smallest values of each coordinate, then averages.

    Args:
      trim: how many of the valid tasks to drop at either end; static, at least 0. A
        meta-batch must have more than `2 * trim` valid tasks; at a step that has fewer,
        as many are dropped as leave one or two.

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
        return _trimmed(task_grads, evidence, trim), state

    return Aggregation(
        name=f"trimmed_mean({trim})", level=Level.FULL, combine=combine, min_tasks=2 * trim + 1
    )


def median() -> Aggregation:
    """Takes the median of each coordinate; of an even number of tasks the middle two's mean.

    Returns:
      An aggregation of level FULL, on the scale of the mean. Less than half of the tasks
      cannot move it without bound; it depends on the choice of coordinates.

    References:
      Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards
      Optimal Statistical Rates", ICML 2018, definition 1; https://arxiv.org/abs/1803.01498

    Example:
      >>> import jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads = jnp.array([[1.0], [2.0], [100.0]])
      >>> print(mj.aggregation.aggregate(mj.aggregation.median(), grads))
      [2.]
    """

    def combine(task_grads, evidence, state):
        return _trimmed(task_grads, evidence, len(evidence.valid)), state

    return Aggregation(name="median", level=Level.FULL, combine=combine)


def graddrop(seed: int = 0) -> Aggregation:
    """Keeps one sign of each coordinate, drawn in proportion to its share of the values.

    With P = ½ (1 + Σᵢ gᵢ / Σᵢ |gᵢ|) for a coordinate, its positive values are kept with
    probability P, else its negative ones; their sum is divided by n.

    Args:
      seed: of the draws; step s draws with `fold_in(key(seed), s)`.

    Returns:
      An aggregation of level FULL, on the scale of the mean. The authors' sum is n times this.

    References:
      Chen, Ngiam, Huang, Luong, Kretzschmar, Chai, Anguelov, "Just Pick a Sign: Optimizing
      Deep Multitask Models with Gradient Sign Dropout", NeurIPS 2020, algorithm 1, without
      leak; https://arxiv.org/abs/2010.06808

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import maml_jax as mj
      >>> grads = jnp.array([[1.0], [3.0]])
      >>> rule = mj.aggregation.graddrop()
      >>> print(mj.aggregation.aggregate(rule, grads, key=jax.random.key(0)))
      [2.]
    """

    def combine(task_grads, evidence, state):
        leaves, structure = jax.tree.flatten(task_grads)
        keys = jax.random.split(evidence.key, max(len(leaves), 1))
        count = jnp.maximum(evidence.num_valid, 1)
        kept = [_one_sign(g, key, count) for g, key in zip(leaves, keys, strict=False)]
        return jax.tree.unflatten(structure, kept), state

    return Aggregation(name="graddrop", level=Level.FULL, combine=combine, seed=seed)


def _trimmed(task_grads, evidence, trim: int):
    """Averages what is left of each coordinate without its `trim` largest and smallest."""
    count = evidence.num_valid
    dropped = jnp.minimum(trim, jnp.maximum(count - 1, 0) // 2)
    ranks = jnp.arange(len(evidence.valid))
    kept = (ranks >= dropped) & (ranks < count - dropped)

    def along_tasks(flags, leaf):
        return flags.reshape(-1, *[1] * (leaf.ndim - 1))

    def reduce(leaf):
        # Invalid tasks sort behind all others, where `kept` never reaches.
        ordered = jnp.sort(jnp.where(along_tasks(evidence.valid, leaf), leaf, jnp.inf), axis=0)
        total = jnp.where(along_tasks(kept, leaf), wide(ordered), 0).sum(axis=0)
        return (total / jnp.maximum(kept.sum(), 1)).astype(leaf.dtype)

    return jax.tree.map(reduce, task_grads)


def _one_sign(grads: jax.Array, key: jax.Array, count: jax.Array) -> jax.Array:
    """Sums the values of one sign of each coordinate of a leaf `[T, ...]`, over `count`."""
    values = wide(grads)
    positive = jnp.maximum(values, 0).sum(axis=0)
    negative = jnp.maximum(-values, 0).sum(axis=0)
    draws = jax.random.uniform(key, positive.shape, jnp.float32)
    # P > u without the quotient, which is 0 / 0 where all values are 0.
    keeps_positive = positive > draws * (positive + negative)
    return (jnp.where(keeps_positive, positive, -negative) / count).astype(grads.dtype)
