"""The meta-batch over several devices: each runs its own tasks, gradients are added up.

A mesh with an axis named "tasks" splits the task axis `T`: with n = ⌈T/D⌉, device d of D runs the
tasks d n … (d + 1) n - 1. Where D does not divide T the last ones have fewer, and run stand-ins
for the rest, which nothing ever sees. Nothing but the reduction crosses devices, so the inner
loops of two tasks never see each other. Parameters are on every device, or, if the mesh has an
axis "model" too, split over it, for networks that one device cannot hold; XLA then exchanges what
its layers need.
"""

import functools
import itertools
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from maml_jax import processes, stand_ins
from maml_jax.host import cpu_cores
from maml_jax.tasks import num_tasks_of

AXIS = "tasks"
MODEL_AXIS = "model"


def check_mesh(mesh: Any) -> None:
    """Refuses what cannot split a meta-batch.

    Args:
      mesh: a `jax.sharding.Mesh`, or None for the default device.

    Raises:
      TypeError: if it is neither.
      ValueError: if it has no axis "tasks", or another than that and "model", or an axis that is
        not Auto.
    """
    if mesh is None:
        return
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"mesh must be a jax.sharding.Mesh or None, got {type(mesh).__name__}; "
            'jax.sharding.Mesh(jax.devices(), ("tasks",)) takes all devices.'
        )
    if AXIS not in mesh.axis_names or not set(mesh.axis_names) <= {AXIS, MODEL_AXIS}:
        raise ValueError(
            f'mesh must have an axis "{AXIS}", over which the meta-batch is split, and may have '
            f'an axis "{MODEL_AXIS}", over which parameters are, got the axes {mesh.axis_names}.'
        )
    if any(kind != jax.sharding.AxisType.Auto for kind in mesh.axis_types):
        raise ValueError(
            f"mesh must have Auto axes, got {mesh.axis_types}; make it by "
            'jax.sharding.Mesh(jax.devices(), ("tasks",)), or give jax.make_mesh '
            "axis_types=(jax.sharding.AxisType.Auto,)."
        )


def task_shards(mesh: Mesh | None) -> int:
    """Counts the parts into which a mesh splits the tasks.

    Args:
      mesh: the devices; None for one.

    Returns:
      The size of the axis "tasks", or 1.

    Example:
      >>> from maml_jax.devices import task_shards
      >>> task_shards(None)
      1
    """
    return 1 if mesh is None else mesh.shape[AXIS]


def tasks_per_device(num_tasks: int, mesh: Mesh | None) -> int:
    """Counts the tasks that each device runs, stand-ins included.

    Args:
      num_tasks: number `T` of tasks of the meta-batch.
      mesh: the devices; None for one.

    Returns:
      ⌈T/D⌉.

    Example:
      >>> import jax
      >>> from maml_jax.devices import tasks_per_device
      >>> tasks_per_device(32, jax.sharding.Mesh(jax.devices()[:1], ("tasks",)))
      32
    """
    return stand_ins.tasks_each(num_tasks, task_shards(mesh))


def on_devices(function: Callable, mesh: Mesh | None, *, whole: bool = False) -> Callable:
    """Lets each device call a function with its own tasks.

    Args:
      function: `(shared, tasks) -> results`, from a tree that every device sees and a tree
        of arrays `[T, ...]`, of which it sees the tasks of one device, stand-ins included, to
        a tree of such arrays. It must get every array as an argument, and close over none.
      mesh: the devices; None calls the function as it is.
      whole: whether the results are the same on every device, through `exchange`; static.

    Returns:
      A function of the whole trees, with the same results.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from maml_jax.devices import on_devices
      >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("tasks",))
      >>> print(on_devices(lambda factor, x: factor * x, mesh)(2, jnp.arange(3)))
      [0 2 4]
    """
    if mesh is None or _undivided(mesh):
        return function
    split, same = PartitionSpec(AXIS), PartitionSpec()

    def shared_out(shared, tasks):
        num_tasks, shards = num_tasks_of(tasks), task_shards(mesh)

        def on_one(shared, own):
            device = jax.lax.axis_index(AXIS)
            return function(shared, stand_ins.copy_own(own, num_tasks, shards, device))

        # With `check_vma`, `jax.grad` in an inner loop would add up the gradients of all devices'
        # tasks, as parameters that are the same everywhere have a cotangent from everywhere.
        results = jax.shard_map(
            on_one,
            mesh=mesh,
            in_specs=(same, split),
            out_specs=same if whole else split,
            axis_names={AXIS},
            check_vma=False,
        )(shared, stand_ins.fill_up(tasks, shards))
        return results if whole else _first(results, num_tasks)

    return shared_out


def exchange(of_tasks: Any, to_sum: Any, num_tasks: int, mesh: Mesh | None) -> tuple[Any, Any]:
    """On one device of several, tells the others what it knows, and learns what they know.

    Args:
      of_tasks: a tree of arrays `[⌈T/D⌉, ...]`, of the device's own tasks.
      to_sum: a tree of arrays of any shape.
      num_tasks: number `T` of tasks; static.
      mesh: the devices; None for one, which gets everything back.

    Returns:
      The first tree with arrays `[T, ...]`, of all tasks, and the second added up over the
      devices, both after one exchange.

    Example:
      >>> from maml_jax.devices import exchange
      >>> exchange({"loss": 1.0}, {"gradient": 2.0}, 1, None)
      ({'loss': 1.0}, {'gradient': 2.0})
    """
    if mesh is None or _undivided(mesh):
        return of_tasks, to_sum
    among_all = jax.tree.map(functools.partial(_among_all, mesh), of_tasks)
    among_all, summed = _summed((among_all, to_sum), mesh)
    return _first(among_all, num_tasks), summed


def _undivided(mesh: Mesh) -> bool:
    """Says whether "model" is the only axis that divides: XLA refuses sums over the other then."""
    return task_shards(mesh) == 1 and MODEL_AXIS in mesh.axis_names


def own_part(of_tasks: jax.Array, mesh: Mesh | None) -> jax.Array:
    """On one device of several, takes what is of its own tasks.

    Args:
      of_tasks: an array `[T, ...]` that every device has.
      mesh: the devices; None for one, whose own all tasks are.

    Returns:
      An array `[⌈T/D⌉, ...]`, 0 for stand-ins.
    """
    if mesh is None or _undivided(mesh):
        return of_tasks
    count = tasks_per_device(len(of_tasks), mesh)
    filled = stand_ins.append_zeros(of_tasks, count * task_shards(mesh))
    return jax.lax.dynamic_slice_in_dim(filled, jax.lax.axis_index(AXIS) * count, count)


def _first(results: Any, num_tasks: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[:num_tasks], results)


def _among_all(mesh: Mesh, own: jax.Array) -> jax.Array:
    """Puts what one device knows of its tasks `[n, ...]` among zeros `[n D, ...]`."""
    own = own.astype(jnp.promote_types(own.dtype, jnp.int8))  # Booleans cannot be added up.
    room = jnp.zeros((task_shards(mesh) * len(own), *own.shape[1:]), own.dtype)
    first = jax.lax.axis_index(AXIS) * len(own)
    return jax.lax.dynamic_update_slice_in_dim(room, own, first, axis=0)


def _summed(tree: Any, mesh: Mesh) -> Any:
    """Adds up a tree over the devices, in one exchange.

    XLA puts the arrays of an accelerator into one exchange by itself. Devices of a CPU meet once
    for each array, which takes some 0.04 ms: there they are one array of each dtype first. On two
    cores the sinusoid network with 256 tasks took 1.10 ms an outer gradient array by array, 0.89
    as one, and 0.83 without any exchange.
    """
    if mesh.devices.flat[0].platform != "cpu" or MODEL_AXIS in mesh.axis_names:
        return jax.lax.psum(tree, AXIS)
    leaves, structure = jax.tree.flatten(tree)
    summed: list[Any] = [None] * len(leaves)
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):  # All processes in one order.
        which = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        flat = jax.lax.psum(jnp.concatenate([leaves[i].ravel() for i in which]), AXIS)
        ends = list(itertools.accumulate(leaves[i].size for i in which))
        for i, part in zip(which, jnp.split(flat, ends[:-1]), strict=True):
            summed[i] = part.reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, summed)


def task_mesh(num_tasks: int, *, at_most: int | None = None) -> Mesh | None:
    """Makes a mesh of the fewest devices that end soonest; of several processes of all.

    Args:
      num_tasks: number `T` of tasks of a meta-batch, at least 1.
      at_most: how many devices of one process it may take, at least 1; None is all.

    Returns:
      The mesh, or None if that is one device.

    Example:
      >>> from maml_jax.devices import task_mesh
      >>> print(task_mesh(1))
      None
    """
    devices = jax.devices()
    count = len(devices)
    if not processes.several():
        each = stand_ins.tasks_each(num_tasks, min(count, at_most or count))
        count = stand_ins.tasks_each(num_tasks, each)  # More would have no less to do.
    if count == 1:
        return None
    if count < len(devices):  # `make_mesh` asks of a TPU's chips that they form a box.
        return Mesh(np.array(devices[:count]), (AXIS,))
    return jax.make_mesh((count,), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def use_cpu_cores() -> None:
    """Makes each CPU core that this process may use a device, if JAX has not started yet.

    One core runs one task as fast as two do, where its products are small; two cores then run
    twice as many. A number that `JAX_NUM_CPU_DEVICES` or `XLA_FLAGS` asks for stays what it is,
    and accelerators are left alone.
    """
    asked = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if asked or jax.config.values["jax_num_cpu_devices"] > 0:
        return
    try:
        jax.config.update("jax_num_cpu_devices", cpu_cores())
    except RuntimeError:
        return  # JAX has started: its devices are what they are.
