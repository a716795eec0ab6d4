"""How the T tasks of a meta-batch run: side by side, one after the other, or in chunks.

A task axis is the number of tasks that run side by side: T for "vmap", 1 for "scan"; on a
mesh, each device has its own T tasks out of all. A task function is written for one task,
`(params, task) -> (loss, metrics)`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from maml_jax.aggregation.ladder import contract
from maml_jax.devices import on_devices, tasks_per_device
from maml_jax.tasks import Params, Task

TaskAxis = Literal["auto", "vmap", "scan"] | int

# Above this much work a task keeps a CPU core busy alone, and its working set leaves the cache
# when tasks run side by side. Measured on 2 cores, work and tasks per second under vmap / scan:
# the sinusoid network, 35,000, vmap is faster; Conv4 with 32 filters on glyphs, 850,000, 109 / 207.
_CPU_SCAN_WORK = 3e5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Where and how the tasks of a meta-batch run.

    Attributes:
      side_by_side: how many tasks run at once on each device, at least 1.
      mesh: the devices that share the tasks; None is the default device.
    """

    side_by_side: int
    mesh: Mesh | None = None


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


def layout_of(
    task_axis: TaskAxis, params: Params, tasks: Task, *, mesh: Mesh | None = None
) -> Layout:
    """Resolves a task axis to the number of tasks that run side by side.

    "auto" takes all on an accelerator, where batched products are fast. On a CPU it takes 1
    when a task is large (parameters times examples above 300,000), else all.

    Args:
      task_axis: "auto", "vmap", "scan" or a chunk size.
      params: the meta-parameters.
      tasks: a meta-batch, arrays `[T, N, ...]`.
      mesh: devices with an axis "tasks"; None is the default device.

    Returns:
      The layout, of 1 to T tasks side by side on each device.

    Raises:
      ValueError: if the devices do not share the tasks evenly.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import maml_jax as mj
      >>> from maml_jax.task_axis import layout_of
      >>> tasks = mj.meta_batch(mj.data.sinusoid(), jax.random.key(0), 8)
      >>> layout_of("scan", jnp.zeros(3), tasks).side_by_side
      1
    """
    num_tasks = tasks_per_device(num_tasks_of(tasks), mesh)
    if task_axis == "auto":
        large = jax.default_backend() == "cpu" and is_large(params, tasks)
        task_axis = "scan" if large else "vmap"
    sizes = {"vmap": num_tasks, "scan": 1}
    side_by_side = sizes[task_axis] if isinstance(task_axis, str) else min(task_axis, num_tasks)
    return Layout(side_by_side=side_by_side, mesh=mesh)


def is_large(params: Params, tasks: Task) -> bool:
    """Tells whether one task alone is enough work for a CPU core.

    Args:
      params: the meta-parameters.
      tasks: a meta-batch, arrays `[T, N, ...]`, or their shapes.

    Returns:
      Whether parameters times examples of one task are above 300,000.
    """
    sets = (tasks.support, tasks.query)
    num_examples = sum(jax.tree.leaves(examples.inputs)[0].shape[1] for examples in sets)
    return count_parameters(params) * num_examples > _CPU_SCAN_WORK


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
      >>> from maml_jax.task_axis import Layout, map_tasks
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

    return on_devices(here, layout.mesh)(shared, tasks)


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
    coefficients: Callable[[jax.Array | None], jax.Array],
    layout: Layout,
    *,
    needs_losses: bool,
) -> tuple[jax.Array, dict, Params]:
    """Computes Σᵢ cᵢ gᵢ without holding the gradients of all tasks.

    The coefficients are the cotangent of the vector of losses of the tasks that run side
    by side; chunks add up, then devices. Coefficients that need all losses (`needs_losses`)
    wait for the last of them: then, unless all tasks run side by side on one device,
    per-task gradients are held after all, which is less than the activations of every task.

    Args:
      task_loss: `(params, task) -> (loss, metrics)` for one task.
      params: the meta-parameters.
      tasks: a meta-batch `[T, ...]`.
      coefficients: from losses `[T]` (None unless `needs_losses`) to coefficients `[T]`.
      layout: where and how the tasks run; static.
      needs_losses: whether `coefficients` looks at the losses; static.

    Returns:
      Losses `[T]`, metrics `[T, ...]`, and Σᵢ cᵢ gᵢ `[...]`.
    """
    if not needs_losses:

        def here(params, own):
            weights, tasks = own
            *seen, grads = _in_chunks(task_loss, params, weights, tasks, layout.side_by_side)
            return seen, grads

        own = coefficients(None), tasks
        seen, grads = on_devices(here, layout.mesh, summed=True)(params, own)
        return *seen, grads
    if layout.mesh is None and layout.side_by_side >= num_tasks_of(tasks):
        return _side_by_side(task_loss, params, tasks, coefficients)
    losses, metrics, task_grads = task_gradients(task_loss, params, tasks, layout)
    return losses, metrics, contract(coefficients(losses), task_grads)


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


def _in_chunks(task_loss, params, weights, tasks, size):
    """Adds up the contracted gradients of chunks; the last may be smaller."""
    num_tasks = len(weights)
    if size >= num_tasks:
        return _side_by_side(task_loss, params, tasks, lambda losses: weights)
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
