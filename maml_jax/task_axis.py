"""How the T tasks of a meta-batch run: side by side, one after the other, or in chunks.

A task axis is the number of tasks that run side by side: T for "vmap", 1 for "scan".
A task function is written for one task, `(params, task) -> (loss, metrics)`.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from maml_jax.aggregation.ladder import contract
from maml_jax.tasks import Params, Task

TaskAxis = Literal["auto", "vmap", "scan"] | int

# Above this much work a task fills the cores of a CPU alone, and its working set leaves
# the cache when tasks run side by side. Measured on 2 cores: the sinusoid network (20
# examples, 1,761 parameters) is fastest under vmap, Conv4 on Omniglot under scan.
_CPU_SCAN_WORK = 1e6


def check_task_axis(task_axis: TaskAxis) -> None:
    """Refuses an unknown way to run tasks.

    Args:
      task_axis: "auto", "vmap", "scan", or the chunk size, at least 1.

    Raises:
      ValueError: if it is none of these.
    """
    is_size = isinstance(task_axis, int) and not isinstance(task_axis, bool) and task_axis >= 1
    if task_axis not in ("auto", "vmap", "scan") and not is_size:
        raise ValueError(
            "task_axis must be 'auto', 'vmap', 'scan' or a chunk size of at least 1, got "
            f"{task_axis!r}."
        )


def tasks_side_by_side(task_axis: TaskAxis, params: Params, tasks: Task) -> int:
    """Resolves a task axis to the number of tasks that run side by side.

    "auto" takes all T on an accelerator, where batched products are fast. On a CPU it
    takes 1 when a task is large (parameters times examples above 10⁶), else all T.

    Args:
      task_axis: "auto", "vmap", "scan" or a chunk size.
      params: the meta-parameters.
      tasks: a meta-batch, arrays `[T, N, ...]`.

    Returns:
      A number in 1..T.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import maml_jax as mj
      >>> from maml_jax.task_axis import tasks_side_by_side
      >>> tasks = mj.meta_batch(mj.data.sinusoid(), jax.random.key(0), 8)
      >>> tasks_side_by_side("scan", jnp.zeros(3), tasks)
      1
    """
    num_tasks = num_tasks_of(tasks)
    if task_axis == "auto":
        work = count_parameters(params) * _num_examples(tasks)
        large = jax.default_backend() == "cpu" and work > _CPU_SCAN_WORK
        task_axis = "scan" if large else "vmap"
    if task_axis == "vmap":
        return num_tasks
    return 1 if task_axis == "scan" else min(task_axis, num_tasks)


def map_tasks(function: Callable[[Task], Any], tasks: Any, side_by_side: int) -> Any:
    """Applies a function of one task to each task, some side by side.

    Args:
      function: from one task (a tree without the axis `T`) to a tree of arrays.
      tasks: a tree of arrays `[T, ...]`.
      side_by_side: how many tasks run at once; static, at least 1.

    Returns:
      The results, stacked `[T, ...]`, the same whatever `side_by_side` is.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax.task_axis import map_tasks
      >>> print(map_tasks(lambda x: x * 2, jnp.arange(3), side_by_side=2))
      [0 2 4]
    """
    if side_by_side >= num_tasks_of(tasks):
        return jax.vmap(function)(tasks)
    if side_by_side == 1:
        return jax.lax.map(function, tasks)
    return jax.lax.map(function, tasks, batch_size=side_by_side)


def task_gradients(
    task_loss: Callable, params: Params, tasks: Task, *, side_by_side: int
) -> tuple[jax.Array, dict, Params]:
    """Computes loss, metrics and gradient of each task, and keeps them all.

    Args:
      task_loss: `(params, task) -> (loss, metrics)` for one task.
      params: the meta-parameters.
      tasks: a meta-batch `[T, ...]`.
      side_by_side: how many tasks run at once; static.

    Returns:
      Losses `[T]`, metrics `[T, ...]`, gradients `[T, ...]`.
    """

    def one(task):
        (loss, metrics), grads = jax.value_and_grad(task_loss, has_aux=True)(params, task)
        return loss, metrics, grads

    return map_tasks(one, tasks, side_by_side)


def contracted_gradient(
    task_loss: Callable,
    params: Params,
    tasks: Task,
    coefficients: Callable[[jax.Array | None], jax.Array],
    *,
    side_by_side: int,
    needs_losses: bool,
) -> tuple[jax.Array, dict, Params]:
    """Computes Σᵢ cᵢ gᵢ without holding the gradients of all tasks.

    The coefficients are the cotangent of the vector of losses of the tasks that run side
    by side, and chunks add up. Coefficients that need all losses (`needs_losses`) wait for
    the last chunk: then, with more than one chunk, per-task gradients are held after all,
    which is less than the activations of every task.

    Args:
      task_loss: `(params, task) -> (loss, metrics)` for one task.
      params: the meta-parameters.
      tasks: a meta-batch `[T, ...]`.
      coefficients: from losses `[T]` (None unless `needs_losses`) to coefficients `[T]`.
      side_by_side: how many tasks run at once; static.
      needs_losses: whether `coefficients` looks at the losses; static.

    Returns:
      Losses `[T]`, metrics `[T, ...]`, and Σᵢ cᵢ gᵢ `[...]`.
    """
    num_tasks = num_tasks_of(tasks)
    if side_by_side >= num_tasks:
        return _side_by_side(task_loss, params, tasks, coefficients)
    if needs_losses:
        losses, metrics, task_grads = task_gradients(
            task_loss, params, tasks, side_by_side=side_by_side
        )
        weights = coefficients(losses)
        return losses, metrics, contract(weights, task_grads)
    return _in_chunks(task_loss, params, tasks, coefficients(None), side_by_side)


def count_parameters(params: Params) -> int:
    """Counts the entries of all arrays of a tree.

    Args:
      params: a tree of arrays.

    Returns:
      The number of entries.
    """
    return sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(params))


def num_tasks_of(tasks: Any) -> int:
    """Reads `T` off the leading axis of a meta-batch.

    Args:
      tasks: a tree of arrays `[T, ...]`.

    Returns:
      The number of tasks.
    """
    return len(jax.tree.leaves(tasks)[0])


def _side_by_side(task_loss, params, tasks, coefficients):
    """One chunk: the coefficients are the cotangent of its vector of losses."""

    def losses_of(params):
        return jax.vmap(task_loss, in_axes=(None, 0))(params, tasks)

    losses, pull_back, metrics = jax.vjp(losses_of, params, has_aux=True)
    (grads,) = pull_back(coefficients(losses).astype(losses.dtype))
    return losses, metrics, grads


def _in_chunks(task_loss, params, tasks, weights, size):
    """Adds up the contracted gradients of chunks; the last may be smaller."""
    num_tasks = len(weights)
    whole = num_tasks - num_tasks % size

    def one_chunk(chunk_weights, chunk):
        if size > 1:
            return _side_by_side(task_loss, params, chunk, lambda losses: chunk_weights)
        single = jax.tree.map(lambda leaf: leaf[0], chunk)
        (loss, metrics), grads = jax.value_and_grad(task_loss, has_aux=True)(params, single)
        grads = jax.tree.map(lambda g: chunk_weights[0].astype(g.dtype) * g, grads)
        return loss[None], jax.tree.map(lambda m: jnp.asarray(m)[None], metrics), grads

    def step(total, chunk):
        losses, metrics, grads = one_chunk(*chunk)
        return jax.tree.map(jnp.add, total, grads), (losses, metrics)

    def fold(leaf):
        return leaf[:whole].reshape(whole // size, size, *leaf.shape[1:])

    zeros = jax.tree.map(jnp.zeros_like, params)
    total, seen = jax.lax.scan(step, zeros, jax.tree.map(fold, (weights, tasks)))
    seen = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), seen)
    if whole < num_tasks:
        rest = jax.tree.map(lambda leaf: leaf[whole:], (weights, tasks))
        losses, metrics, grads = _side_by_side(task_loss, params, rest[1], lambda losses: rest[0])
        total = jax.tree.map(jnp.add, total, grads)
        seen = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), seen, (losses, metrics))
    return *seen, total


def _num_examples(tasks: Task) -> int:
    """Counts the examples of one task, padding included."""
    sets = (tasks.support, tasks.query)
    return sum(jax.tree.leaves(examples.inputs)[0].shape[1] for examples in sets)
