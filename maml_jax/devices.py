"""The meta-batch over several devices: each runs its own tasks, gradients are added up.

A mesh with an axis named "tasks" splits the task axis `T` evenly: device d of D runs the
tasks d T/D … (d + 1) T/D - 1. Parameters are on every device. Nothing but the reduction
crosses devices, so the inner loops of two tasks never see each other.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from maml_jax.host import cpu_cores

AXIS = "tasks"


def check_mesh(mesh: Any) -> None:
    """Refuses what cannot split a meta-batch.

    Args:
      mesh: a `jax.sharding.Mesh`, or None for the default device.

    Raises:
      TypeError: if it is neither.
      ValueError: if it has not exactly one axis, named "tasks".
    """
    if mesh is None:
        return
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"mesh must be a jax.sharding.Mesh or None, got {type(mesh).__name__}; "
            'jax.sharding.Mesh(jax.devices(), ("tasks",)) takes all devices.'
        )
    if mesh.axis_names != (AXIS,):
        raise ValueError(
            f'mesh must have one axis, named "{AXIS}", over which the meta-batch is split, got '
            f"the axes {mesh.axis_names}."
        )


def tasks_per_device(num_tasks: int, mesh: Mesh | None) -> int:
    """Counts the tasks that each device runs.

    Args:
      num_tasks: number `T` of tasks of the meta-batch.
      mesh: the devices; None for one.

    Returns:
      T / D.

    Raises:
      ValueError: if the devices do not share the tasks evenly.

    Example:
      >>> import jax
      >>> from maml_jax.devices import tasks_per_device
      >>> tasks_per_device(32, jax.sharding.Mesh(jax.devices()[:1], ("tasks",)))
      32
    """
    if mesh is None:
        return num_tasks
    if num_tasks % mesh.size:
        raise ValueError(
            f"the devices share the tasks evenly: {num_tasks} tasks do not split over "
            f"{mesh.size} devices; take a multiple, and mask the tasks that do not count."
        )
    return num_tasks // mesh.size


def on_devices(function: Callable, mesh: Mesh | None, *, summed: bool = False) -> Callable:
    """Lets each device call a function with its own tasks.

    Args:
      function: `(shared, tasks) -> results`, from a tree that is on every device and a tree
        of arrays `[T, ...]`, of which it sees the tasks of one device, to a tree of such
        arrays; with `summed`, to a pair of that and a tree to add up over the devices. It
        must get every array as an argument, and close over none.
      mesh: the devices; None calls the function as it is.
      summed: whether there is such a second part; static.

    Returns:
      A function of the whole trees, with the same results.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from maml_jax.devices import on_devices
      >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("tasks",))
      >>> print(on_devices(lambda factor, x: factor * x, mesh)(2, jnp.arange(3)))
      [0 2 4]
    """
    if mesh is None:
        return function

    def here(shared, tasks):
        results = function(shared, tasks)
        return (results[0], jax.lax.psum(results[1], AXIS)) if summed else results

    split, whole = PartitionSpec(AXIS), PartitionSpec()
    # With `check_vma`, `jax.grad` in an inner loop would add up the gradients of all devices'
    # tasks, as parameters that are the same everywhere have a cotangent from everywhere.
    return jax.shard_map(
        here,
        mesh=mesh,
        in_specs=(whole, split),
        out_specs=(split, whole) if summed else split,
        check_vma=False,
    )


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """Puts a copy of every array on each device, so that no call has to.

    Args:
      tree: a tree of arrays.
      mesh: the devices; None leaves the tree where it is.

    Returns:
      The tree.
    """
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def task_mesh(num_tasks: int) -> Mesh | None:
    """Makes a mesh of as many local devices as share the tasks evenly.

    Args:
      num_tasks: number `T` of tasks of a meta-batch, at least 1.

    Returns:
      The mesh, or None if that is one device.

    Example:
      >>> from maml_jax.devices import task_mesh
      >>> print(task_mesh(1))
      None
    """
    devices = jax.local_devices()
    count = max(n for n in range(1, len(devices) + 1) if num_tasks % n == 0)
    return Mesh(np.array(devices[:count]), (AXIS,)) if count > 1 else None


def use_cpu_cores() -> None:
    """Makes each CPU core that this process may use a device, if JAX has not started yet.

    One core runs one task as fast as two do, where its products are small; two cores then run
    twice as many. `JAX_NUM_CPU_DEVICES`, if set, stays what it is, and accelerators are left
    alone.
    """
    if jax.config.values["jax_num_cpu_devices"] > 0:
        return
    try:
        jax.config.update("jax_num_cpu_devices", cpu_cores())
    except RuntimeError:
        return  # JAX has started: its devices are what they are.
