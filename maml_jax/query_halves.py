"""The noise of each task's gradient, from two halves of its query set.

Query examples are drawn at random, so the gradient of a task is itself a noisy estimate. Its
halves A and B, of n_A and n_B examples, have independent noise, and

    g = (n_A g_A + n_B g_B) / n        σ² = ‖g_A - g_B‖² n_A n_B / n²

where σ² is an unbiased estimate of the variance tr Cov(g) over query sets of n examples.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maml_jax.aggregation.ladder import sq_norms, zero_invalid
from maml_jax.layout import Layout
from maml_jax.task_axis import task_gradients
from maml_jax.tasks import Examples, Params, Task


def noisy_task_gradients(
    task_loss: Callable, params: Params, tasks: Task, layout: Layout, *, valid: jax.Array
) -> tuple[jax.Array, dict, Params, jax.Array]:
    """Computes loss, metrics and gradient of each task, and the gradient's noise.

    Every other query example is of one half. Where `loss_fn` averages over the examples, loss
    and gradient are those of the whole set; batch statistics are those of the halves. A task
    with one unmasked query example shows no noise: it gets the average noise per example.

    Args:
      task_loss: `(params, task) -> (loss, metrics)` for one task.
      params: the meta-parameters.
      tasks: a meta-batch `[T, ...]` with an even number of query examples.
      layout: where and how the tasks run; static.
      valid: booleans `[T]`, the tasks that count.

    Returns:
      Losses `[T]`, metrics `[T, ...]`, gradients `[T, ...]`, noise `[T]` in units of ‖g‖².

    Raises:
      ValueError: if the number of query examples is odd.
    """
    sizes, halves = _halves(tasks)
    losses, metrics, grads = task_gradients(task_loss, params, halves, layout)
    share = sizes / jnp.maximum(sizes.sum(axis=1, keepdims=True), 1)

    def joined(values: jax.Array) -> jax.Array:
        pairs = values.reshape(-1, 2, *values.shape[1:])
        weights = share.astype(jnp.promote_types(values.dtype, jnp.float32))
        weights = weights.reshape(-1, 2, *[1] * (values.ndim - 1))
        # A half without examples has no loss; its weight is 0, and 0 times NaN is NaN.
        return jnp.where(weights > 0, weights * pairs, 0).sum(axis=1).astype(values.dtype)

    def apart(values: jax.Array) -> jax.Array:
        pairs = values.reshape(-1, 2, *values.shape[1:])
        return pairs[:, 0] - pairs[:, 1]

    known = (sizes > 0).all(axis=1)
    total = sizes.sum(axis=1)
    squares = sq_norms(zero_invalid(jax.tree.map(apart, grads), known & valid))
    per_example = squares * sizes.prod(axis=1) / jnp.maximum(total, 1)
    counted = known & valid & jnp.isfinite(per_example)
    average = jnp.where(counted, per_example, 0).sum() / jnp.maximum(counted.sum(), 1)
    noise = jnp.where(known, per_example, average) / jnp.maximum(total, 1)
    whole = [jax.tree.map(joined, tree) for tree in (losses, metrics, grads)]
    return *whole, noise


def _halves(tasks: Task) -> tuple[jax.Array, Task]:
    """Gives the sizes of the halves `[T, 2]`, and `[2 T, ...]` tasks, two after each other."""
    num_tasks, num_query = jax.tree.leaves(tasks.query.inputs)[0].shape[:2]
    if num_query % 2:
        raise ValueError(
            "to estimate noise from two halves of the query set it must hold an even number of "
            f"examples per task, got {num_query}; take one more or less, or pad with a mask."
        )

    def split(leaf: Any) -> jax.Array:
        parted = leaf.reshape(num_tasks, num_query // 2, 2, *leaf.shape[2:])
        return jnp.moveaxis(parted, 2, 1).reshape(2 * num_tasks, num_query // 2, *leaf.shape[2:])

    def twice(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.repeat(leaf, 2, axis=0), tree)

    query = tasks.query
    parts = jax.tree.map(split, (query.inputs, query.targets, query.mask))
    inputs, targets, mask = parts
    half = Examples(inputs=inputs, targets=targets, mask=mask, reference=twice(query.reference))
    if mask is None:
        sizes = jnp.full((num_tasks, 2), num_query // 2)
    else:
        sizes = mask.sum(axis=1).reshape(num_tasks, 2)
    return sizes, Task(support=twice(tasks.support), query=half, task_id=twice(tasks.task_id))
