"""Where the tasks of a meta-batch run: how many side by side, on which devices.

A task axis is the number of tasks that run side by side on a device: T for "vmap", 1 for
"scan". "auto" takes as many as their memory allows: what the backward pass of a task keeps, and
off a CPU what it makes again.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Literal

import jax
from jax.sharding import Mesh

from maml_jax import processes
from maml_jax.chunks import chunk_size
from maml_jax.devices import task_mesh, tasks_per_device
from maml_jax.residuals import bytes_kept, bytes_made_again
from maml_jax.tasks import Params, Task, num_tasks_of

TaskAxis = Literal["auto", "vmap", "scan"] | int

# On a CPU a task that keeps more than this runs alone: its products are large enough, and several
# tasks would push each other out of the cache. Smaller tasks run side by side in so much memory.
# One after the other against all 16 at once, in ms per outer step of Conv4 on 5-way 1-shot glyphs,
# a task keeping 5.2 MB: 25 and 53; 1.3 MB: 13 and 15; 0.6 MB: 8.5 and 5.2 (AVX-512, one core).
_LARGE_TASK_BYTES = 2**20
_SMALL_TASKS_BYTES = 2**26

# Small tasks are shared by so many cores that each has tasks that keep this much together, and are
# done 1 MiB at a time. On one core and on two, in ms per outer step of the sinusoid network, 33 kB
# a task: 8 tasks 0.19 and 0.19; 16 tasks 0.34 and 0.27; 25 tasks 0.46 and 0.34; 64 tasks 1.05 and
# 0.69; 256 tasks 4.5 and 2.6 (AVX2); with AVX-512 16 tasks 0.12 and 0.12, 256 tasks 1.27 and 0.90.
_SHARE_BYTES = 2**18

# Tasks that are not shared and keep at most this together run on one core: handing small operations
# from core to core takes longer than it saves. With that and without, in ms per outer step of the
# same network on two cores: 25 tasks 0.36 to 0.44 and 0.45; 64 tasks 0.99 and 0.91 (AVX2).
_ONE_CORE_BYTES = 2**20

# The part of an accelerator's memory that what is kept may take. XLA's temporary memory was 1.4 to
# 1.5 times what is kept (W1 and W2 of benchmarks/workloads.py, reverse and mixed mode), and
# parameters, optimizer and data need room too. A TPU pads arrays to tiles of 8 x 128: there it was
# 2.1 to 4.7 times (benchmarks/tpu_compile.py).
_MEMORY_SHARE = {"tpu": 0.25}
_OTHERS_SHARE = 0.5


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
    task_axis: TaskAxis,
    task_loss: Callable,
    params: Params,
    tasks: Task,
    *,
    mesh: Mesh | None = None,
) -> Layout:
    """Resolves a task axis to the number of tasks that run side by side.

    "auto" takes as many as may keep their activations at once: in half of a GPU's memory, or a
    quarter of a TPU's, with the room for what `jax.checkpoint` makes again, where batched products
    are fast; on a CPU one at a time if a task keeps more than 1 MiB, else as many as keep 64 MiB,
    or on several cores 1 MiB each.

    Args:
      task_axis: "auto", "vmap", "scan" or a chunk size.
      task_loss: `(params, task) -> (loss, metrics)` for one task; traced for "auto" only.
      params: the meta-parameters.
      tasks: a meta-batch, arrays `[T, N, ...]`, or their shapes.
      mesh: devices with an axis "tasks"; None is the default device.

    Returns:
      The layout, of 1 to T tasks side by side on each device.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import maml_jax as mj
      >>> from maml_jax.layout import layout_of
      >>> tasks = mj.meta_batch(mj.data.sinusoid(), jax.random.key(0), 8)
      >>> def task_loss(params, task):
      ...     return jnp.mean((params * task.query.inputs - task.query.targets) ** 2), {}
      >>> layout_of("scan", task_loss, jnp.zeros((10, 1)), tasks).side_by_side
      1
      >>> layout_of("auto", task_loss, jnp.zeros((10, 1)), tasks).side_by_side
      8
    """
    num_tasks = tasks_per_device(num_tasks_of(tasks), mesh)
    if task_axis == "auto":
        fit = _tasks_that_fit(task_loss, params, tasks, mesh)
        side_by_side = chunk_size(num_tasks, fit)
    elif isinstance(task_axis, str):
        side_by_side = {"vmap": num_tasks, "scan": 1}[task_axis]
    else:
        side_by_side = min(task_axis, num_tasks)
    return Layout(side_by_side=side_by_side, mesh=mesh)


def mesh_for(task_loss: Callable, params: Params, tasks: Task, num_tasks: int) -> Mesh | None:
    """Chooses the devices that share the tasks: all, but few small tasks stay on few CPU cores.

    On a CPU, tasks that keep at most 1 MiB each for their backward pass take one core for each
    0.25 MiB that they keep together. Several processes use all of their devices.

    Args:
      task_loss: `(params, task) -> (loss, metrics)` for one task.
      params: the meta-parameters.
      tasks: a meta-batch, arrays `[T, N, ...]`, or their shapes; T may be 1.
      num_tasks: how many tasks a meta-batch will have.

    Returns:
      The mesh, or None for the default device.
    """
    small = _small_bytes(task_loss, params, tasks, num_tasks)
    at_most = None if small is None else max(1, small // _SHARE_BYTES)
    return task_mesh(num_tasks, at_most=at_most)


def fits_one_core(task_loss: Callable, params: Params, tasks: Task, num_tasks: int) -> bool:
    """Tells whether a meta-batch that is not shared is done faster by one CPU core than by several.

    Those are few small tasks: of at most 1 MiB each, and 1 MiB together.

    Args:
      task_loss: `(params, task) -> (loss, metrics)` for one task; traced.
      params: the meta-parameters.
      tasks: a meta-batch, arrays `[T, N, ...]`, or their shapes; T may be 1.
      num_tasks: how many tasks a meta-batch will have.

    Returns:
      Whether it is; never on an accelerator, nor with several processes.
    """
    small = _small_bytes(task_loss, params, tasks, num_tasks)
    return small is not None and small <= _ONE_CORE_BYTES


def _small_bytes(task_loss, params, tasks, num_tasks) -> int | None:
    """Counts what small tasks keep together on the CPU of one process; None elsewhere."""
    if jax.default_backend() != "cpu" or processes.several():
        return None
    each = bytes_kept(task_loss, params, tasks)
    return num_tasks * each if each <= _LARGE_TASK_BYTES else None


def _tasks_that_fit(task_loss, params, tasks, mesh: Mesh | None) -> int:
    """Counts the tasks that may run side by side on one device; may be 0."""
    device = jax.local_devices()[0] if mesh is None else mesh.local_devices[0]
    if device.platform == "cpu":
        each = bytes_kept(task_loss, params, tasks)
        if each > _LARGE_TASK_BYTES:
            return 1
        return (_SMALL_TASKS_BYTES if mesh is None else _LARGE_TASK_BYTES) // each
    memory = (device.memory_stats() or {}).get("bytes_limit", sys.maxsize)  # Some do not tell.
    return tasks_in_memory(task_loss, params, tasks, device.platform, memory)


def tasks_in_memory(
    task_loss: Callable, params: Params, tasks: Task, platform: str, memory: float
) -> int:
    """Counts the tasks that "auto" would run side by side in the memory of an accelerator.

    Args:
      task_loss: `(params, task) -> (loss, metrics)` for one task; traced.
      params: the meta-parameters.
      tasks: a meta-batch, arrays `[T, N, ...]`, or their shapes.
      platform: "gpu", "tpu" or another, as JAX names it.
      memory: bytes of one device.

    Returns:
      How many, were there enough; may be 0.
    """
    each = bytes_kept(task_loss, params, tasks) + bytes_made_again(task_loss, params, tasks)
    return int(_MEMORY_SHARE.get(platform, _OTHERS_SHARE) * memory) // each
