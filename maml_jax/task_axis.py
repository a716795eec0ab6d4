"""How the T tasks of a meta-batch run: side by side, one after the other, or in chunks.

On a mesh, each device has its own T tasks out of all. A task function is written for one
task, `(params, task) -> (loss, metrics)`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from maml_jax import devices
from maml_jax.aggregation.ladder import contract
from maml_jax.devices import tasks_per_device
from maml_jax.layout import Layout
from maml_jax.tasks import Params, Task, num_tasks_of


def map_tasks(function: Callable, shared: Any, tasks: Any, layout: Layout) -> Any:
    """Applies a function of one task to each task, some side by side.

    Args:
      function: `(shared, task)` to a tree of arrays, the task without the axis `T`.
      shared: a tree of arrays that all tasks see, such as the meta-parameters.
      tasks: a tree of arrays `[T, ...]`.
      layout: where and how they run; static.

    Returns:
      The results, stacked `[T, ...]`, the same whatever the layout is.

    Example:
      >>> import jax.numpy as jnp
      >>> from maml_jax.layout import Layout
      >>> from maml_jax.task_axis import map_tasks
      >>> print(map_tasks(lambda a, x: a * x, 2, jnp.arange(3), Layout(side_by_side=2)))
      [0 2 4]
    """

    def here(shared, tasks):
        one = functools.partial(function, shared)
        if layout.side_by_side >= num_tasks_of(tasks):
            return jax.vmap(one)(tasks)
        if layout.side_by_side == 1:
            return jax.lax.map(one, tasks)
        return jax.lax.map(one, tasks, batch_size=layout.side_by_side)

    return devices.on_devices(here, layout.mesh)(shared, tasks)


def task_gradients(
    task_loss: Callable, params: Params, tasks: Task, layout: Layout
) -> tuple[jax.Array, dict, Params]:
    """Computes loss, metrics and gradient of each task, and keeps them all.

    Args:
      task_loss: `(params, task) -> (loss, metrics)` for one task.
      params: the meta-parameters.
      tasks: a meta-batch `[T, ...]`.
      layout: where and how the tasks run; static.

    Returns:
      Losses `[T]`, metrics `[T, ...]`, gradients `[T, ...]`.
    """

    def one(params, task):
        (loss, metrics), grads = jax.value_and_grad(task_loss, has_aux=True)(params, task)
        return loss, metrics, grads

    return map_tasks(one, params, tasks, layout)


def contracted_gradient(
    task_loss: Callable,
    params: Params,
    tasks: Task,
    decide: Callable[..., tuple[jax.Array, Any]],
    known: Any,
    layout: Layout,
    *,
    needs_losses: bool,
) -> tuple[jax.Array, dict, Params, tuple[jax.Array, Any]]:
    """Computes Σᵢ cᵢ gᵢ without holding the gradients of all tasks.

    The coefficients are the cotangent of the vector of losses of the tasks that run side
    by side; chunks add up, then devices. Coefficients that need all losses (`needs_losses`)
    wait for the last of them: then, where a device runs its tasks in chunks, per-task gradients
    are held after all, which is less than the activations of every task.

    Args:
      task_loss: `(params, task) -> (loss, metrics)` for one task.
      params: the meta-parameters.
      tasks: a meta-batch `[T, ...]`.
      decide: gives coefficients `[T]` and anything else, from `known`, and from losses `[T]`
        and metrics `[T, ...]` if `needs_losses`; called once.
      known: a tree of arrays, whatever `decide` needs.
      layout: where and how the tasks run; static.
      needs_losses: whether `decide` looks at the losses; static.

    Returns:
      Losses `[T]`, metrics `[T, ...]`, Σᵢ cᵢ gᵢ `[...]`, and what `decide` gave.
    """
    mesh, size, num_tasks = layout.mesh, layout.side_by_side, num_tasks_of(tasks)
    if needs_losses and size < tasks_per_device(num_tasks, mesh):
        losses, metrics, task_grads = task_gradients(task_loss, params, tasks, layout)
        decided = decide(known, losses, metrics)
        return losses, metrics, contract(decided[0], task_grads), decided

    def before(shared, tasks):
        params, known = shared
        decided = decide(known)
        own = devices.own_part(decided[0], mesh)
        *seen, grads = _in_chunks(task_loss, params, own, tasks, size)
        seen, grads = devices.exchange(seen, grads, num_tasks, mesh)
        return *seen, grads, decided

    def between(shared, tasks):
        params, known = shared
        *seen, pull_back = _losses(task_loss, params, tasks)
        seen, _ = devices.exchange(seen, (), num_tasks, mesh)
        decided = decide(known, *seen)
        grads = pull_back(devices.own_part(decided[0], mesh))
        return *seen, devices.exchange((), grads, num_tasks, mesh)[1], decided

    step = devices.on_devices(between if needs_losses else before, mesh, whole=True)
    return step((params, known), tasks)


def _losses(task_loss, params, tasks):
    """Losses and metrics of tasks side by side, and what pulls coefficients back through them."""

    def losses_of(params):
        return jax.vmap(task_loss, in_axes=(None, 0))(params, tasks)

    losses, pull_back, metrics = jax.vjp(losses_of, params, has_aux=True)
    return losses, metrics, lambda weights: pull_back(weights.astype(losses.dtype))[0]


def _weighted(task_loss, params, tasks, weights):
    """One chunk with known coefficients, which are the cotangent of its vector of losses."""
    *seen, pull_back = _losses(task_loss, params, tasks)
    return *seen, pull_back(weights)


def _in_chunks(task_loss, params, weights, tasks, size):
    """Adds up the contracted gradients of chunks; the last may be smaller."""
    num_tasks = len(weights)
    if size >= num_tasks:
        return _weighted(task_loss, params, tasks, weights)
    whole = num_tasks - num_tasks % size

    def one_chunk(chunk_weights, chunk):
        if size > 1:
            return _weighted(task_loss, params, chunk, chunk_weights)
        single = jax.tree.map(lambda leaf: leaf[0], chunk)
        (loss, metrics), grads = jax.value_and_grad(task_loss, has_aux=True)(params, single)
        grads = jax.tree.map(lambda g: chunk_weights[0].astype(g.dtype) * g, grads)
        return loss[None], jax.tree.map(lambda m: jnp.asarray(m)[None], metrics), grads

    def add(total, grads):
        return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, grads)

    def step(total, chunk):
        losses, metrics, grads = one_chunk(*chunk)
        return add(total, grads), (losses, metrics)

    def fold(leaf):
        return leaf[:whole].reshape(whole // size, size, *leaf.shape[1:])

    def zeros(p):
        return jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32))

    total, seen = jax.lax.scan(
        step, jax.tree.map(zeros, params), jax.tree.map(fold, (weights, tasks))
    )
    seen = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), seen)
    if whole < num_tasks:
        rest = jax.tree.map(lambda leaf: leaf[whole:], (weights, tasks))
        losses, metrics, grads = _weighted(task_loss, params, rest[1], rest[0])
        total = add(total, grads)
        seen = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), seen, (losses, metrics))
    return *seen, jax.tree.map(lambda t, p: t.astype(p.dtype), total, params)
